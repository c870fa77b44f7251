"""The platform in containers: a customer deploys to it, it is scaled, and a replica dies in the middle."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from docker.models.containers import Container
from runtime.registry_key import RegistryKey

from tests.compose.stack import Stack, berth, stack
from tests.customer import Customer, archive, folder
from tests.harness import eventually

HELLO = Path(__file__).parents[2] / "examples" / "hello-python"
APPS = 6
PERIOD = 5
CREDIT = 25_000_000


@pytest.fixture(scope="module")
async def platform(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    settings = {
        "BUILDER_CONCURRENCY": "1",
        "BUILDER_LEASE_SECONDS": "5",
        "BILLING_PERIOD_SECONDS": str(PERIOD),
        "NODE_AGENT_DRAIN_SECONDS": "1",
    }
    scale = ("builder=3", "billing=2", "gateway=2")
    async with stack(tmp_path_factory.mktemp("compose"), *scale, **settings) as opened:
        try:
            await opened.ready()
            yield opened
        except Exception:
            print(opened.last_words())
            raise


@asynccontextmanager
async def customer_of(platform: Stack, name: str) -> AsyncIterator[Customer]:
    """Registered, and with money."""
    async with platform.customer() as administrator, platform.customer() as customer:
        await platform.administrator(administrator)
        await customer.register(f"{name}@example.org", name)
        await administrator.call(
            "POST",
            f"/api/admin/organizations/{customer.organization}/credits",
            json={"amount": str(CREDIT // 1_000_000)},
        )

        async def paid() -> bool:
            wallet = await customer.call("GET", "/api/paas/wallet")
            return bool(wallet["balance"]["micros"] == CREDIT)

        await eventually(paid, seconds=20, every=0.2, what="the credit in the wallet")
        yield customer


def slow(name: str) -> bytes:
    """An app whose build takes long enough to be interrupted."""
    server = (
        "import http.server, os\n"
        f"BODY = b'app {name}'\n"
        "class App(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.send_header('Content-Length', str(len(BODY)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(BODY)\n"
        "http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), App).serve_forever()\n"
    )
    dockerfile = f"FROM berth/python:3.11\nRUN sleep 4; echo {name}\nCOPY app.py /app.py\n"
    return archive({"Dockerfile": dockerfile + 'CMD ["python3", "/app.py"]\n', "app.py": server})


class Begun(NamedTuple):
    """A build that a replica began."""

    at: str
    deployment: str
    attempt: int
    replica: str


def begun(builders: list[Container]) -> list[Begun]:
    return [
        Begun(said["timestamp"], said["deployment"], said["attempt"], str(builder.name))
        for builder in builders
        for line in builder.logs().decode().splitlines()
        if (said := json.loads(line))["event"] == "build begun"
    ]


async def test_a_container_is_told_nothing_that_is_anothers(platform: Stack) -> None:
    secrets = {
        name: value
        for name, value in platform.env.items()
        if name.endswith(("SECRET", "REGISTRY_KEY")) or "PASSWORD" in name
    }
    told: dict[str, set[str]] = {}
    for container in platform.containers():
        service = container.labels["com.docker.compose.service"]
        words = " ".join(container.attrs["Config"]["Env"])
        told[service] = {name for name, value in secrets.items() if value in words}
    own = {
        service: {f"BERTH_DATABASE_PASSWORD_{service.upper()}", f"BERTH_NATS_PASSWORD_{service.upper()}"}
        for service in ("gateway", "builder", "scheduler", "domains", "billing")
    }
    for service in ("builder", "scheduler"):
        own[service] |= {"BERTH_REGISTRY_KEY"}
    own["gateway"] |= {"BERTH_GATEWAY_TOKEN_SECRET", "GATEWAY_ADMIN_PASSWORD"}
    assert told == own | {
        "postgres": {"BERTH_POSTGRES_PASSWORD"},
        "nats": {name for name in secrets if name.startswith("BERTH_NATS_PASSWORD_")},
        "registry": {"BERTH_REGISTRY_SECRET"},
        "migrate": {"BERTH_SECRET", "BERTH_POSTGRES_PASSWORD"},
        "node-agent": {"BERTH_NATS_PASSWORD_NODE"},
        "ingress": set(),
        "door": set(),
    }


async def test_the_way_of_a_deployment(platform: Stack) -> None:
    async with customer_of(platform, "walker") as customer:
        app, view = await customer.live("hello", folder(HELLO))
        url = httpx.URL(view["url"])
        assert f":{url.port}" == customer.ingress.removeprefix("http://127.0.0.1")
        hostname = url.host
        await customer.answers(hostname, "Hello from Berth!")
        assert (await customer.said(app, "listening on 8080"))["process"] == "web.1"

        await customer.call("POST", f"/api/paas/apps/{app}/stop")
        await customer.status(app, "stopped")
        await customer.silent(hostname)

        await customer.call("DELETE", f"/api/paas/apps/{app}")
        listed = await customer.call("GET", "/api/paas/apps")
        assert listed["apps"] == []


async def test_the_registry_keeps_images_for_those_who_run_them(platform: Stack) -> None:
    """A node pulls what it runs, without a password; nobody else is let in; each app has a repository of its
    own. What else the registry makes of tokens: tests/ports/test_own_registry.py."""
    async with customer_of(platform, "keeper") as customer:
        app, _ = await customer.live("kept", folder(HELLO))
        deployments = (await customer.call("GET", f"/api/paas/apps/{app}/deployments"))["deployments"]
        kept, image = deployments[0], deployments[0]["image"]
        registry = f"https://127.0.0.1:{platform.env['BERTH_REGISTRY_PORT']}"
        repository = f"{customer.organization}/{app}"
        assert image.startswith(f"{registry.removeprefix('https://')}/{repository}@sha256:")
        manifest = f"{registry}/v2/{repository}/manifests/{kept['id']}"
        headers = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
        key = RegistryKey(platform.env["BERTH_REGISTRY_KEY"])

        def token(repository: str, of: RegistryKey = key) -> dict[str, str]:
            return {"Authorization": f"Bearer {of.token('tests', repository, ('pull',), datetime.now(UTC))}"}

        async with httpx.AsyncClient(headers=headers, verify=False) as client:
            for nobody in (
                {},
                token(f"{customer.organization}/another"),
                token(repository, RegistryKey("guessed")),
            ):
                assert (await client.get(manifest, headers=nobody)).status_code == 401
            found = await client.get(manifest, headers=token(repository))
            assert found.status_code == 200
            assert image.endswith(found.headers["Docker-Content-Digest"])
        await customer.call("DELETE", f"/api/paas/apps/{app}")


@pytest.mark.promise("D2")
async def test_builders_share_the_work_and_one_that_dies_is_replaced(platform: Stack) -> None:
    async with customer_of(platform, "storm") as customer:

        async def deploy(name: str) -> str:
            return await customer.deploy(await customer.create(name, plan="nano"), slow(name))

        deployments = await asyncio.gather(*(deploy(f"storm-{number}") for number in range(APPS)))
        builders = platform.containers("builder")
        assert len(builders) == 3

        async def all_at_work() -> list[Begun] | None:
            found = [one for one in begun(builders) if one.deployment in deployments]
            return found if len({one.replica for one in found}) == 3 else None

        latest = max(await eventually(all_at_work, seconds=30, every=0.2, what="a build in every builder"))
        (dying,) = [builder for builder in builders if builder.name == latest.replica]
        dying.kill()

        ended = await asyncio.gather(*(customer.ended(deployment) for deployment in deployments))
        assert [one["status"] for one in ended] == ["running"] * APPS, ended
        again = [one for one in begun(builders) if one.deployment == latest.deployment]
        assert sorted(one.attempt for one in again) == [1, 2]
        assert max(again).replica != dying.name

        for view in (await customer.call("GET", "/api/paas/apps"))["apps"]:
            await customer.answers(httpx.URL(view["url"]).host, f"app {view['name']}")
        await shared_meters(platform, customer)
        for view in (await customer.call("GET", "/api/paas/apps"))["apps"]:
            await customer.call("DELETE", f"/api/paas/apps/{view['id']}")


async def shared_meters(platform: Stack, customer: Customer) -> None:
    """Both billings do their part, and no second of an app is charged twice."""

    async def handled() -> bool:
        texts = [
            (await platform.ops(container, "/metrics")).text for container in platform.containers("billing")
        ]
        counts = [
            sum(map(float, re.findall(r"^berth_events_handled_total\{.*\} (\S+)$", t, re.M))) for t in texts
        ]
        return len(counts) == 2 and all(counts)

    await eventually(handled, seconds=20, every=0.5, what="events handled by both billings")

    async def charged() -> Any:
        usage = await customer.call("GET", "/api/paas/usage")
        wallet = await customer.call("GET", "/api/paas/wallet")
        return (
            len(usage["lines"]) == APPS
            and all(line["seconds"] >= 2 * PERIOD for line in usage["lines"])
            and usage["total"]["micros"] + wallet["balance"]["micros"] == CREDIT
            and usage
        )

    usage = await eventually(charged, seconds=40, every=0.5, what="two periods charged to every app")
    elapsed = (datetime.now(UTC) - datetime.fromisoformat(usage["since"])).total_seconds()
    assert all(line["seconds"] <= elapsed for line in usage["lines"]), (usage, elapsed)


async def test_the_api_outlives_a_gateway(platform: Stack) -> None:
    async with platform.customer() as customer:
        await platform.administrator(customer)
        first, _ = platform.containers("gateway")
        first.kill()
        for _ in range(20):
            assert await customer.call("GET", "/api/admin/paas/nodes", retry=True)


async def test_it_goes_down_and_apps_stay_up(platform: Stack) -> None:
    """The last one: afterwards nothing of the platform runs, and what the customers have runs on."""
    async with customer_of(platform, "stayer") as customer:
        await customer.live("stayer", folder(HELLO))
    await asyncio.to_thread(platform.compose, "down", "--timeout", "20")
    assert platform.containers() == []
    assert [app.status for app in platform.apps()] == ["running"]

    berth("compose-clear", "--state", str(platform.state))
    assert platform.apps() == []
