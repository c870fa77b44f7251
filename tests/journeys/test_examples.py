"""Every example through the public door: found out, explained, built without root's help, answering."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest

from tests.builder.cnb_images import cnb_images
from tests.customer import Customer, archive, folder
from tests.harness import address_of, eventually
from tests.platform import ADMIN, Platform, platform
from tests.ports.git_server import GitServer, git_server

EXAMPLES = Path(__file__).parents[2] / "examples"
BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))

# Of each: the folder of the app, where it is not all of the example; the runtime; why; what a visitor reads.
CASES: dict[str, tuple[str | None, str, str, str]] = {
    "hello-dockerfile": (None, "dockerfile", "Found Dockerfile", "Hello from a Dockerfile!"),
    "hello-python": (None, "python-3.11", "Found requirements.txt: Python with pip", "Hello from Berth!"),
    "hello-node": (
        None,
        "node-24",
        "Found package.json and package-lock.json: Node.js with npm",
        "Hello from Berth! This is Node.js.",
    ),
    "hello-php": (None, "php-8.2", "Found composer.json: PHP with Composer", "This is PHP 8.2"),
    "hello-ruby": (None, "ruby-3.1", "Found Gemfile: Ruby with Bundler", "This is Ruby 3.1"),
    "hello-go": (None, "go-1.23", "Found go.mod: a Go module, which makes hello-go", "This is Go"),
    "hello-java": (None, "java-17", "Found src/Main.java: Java without a build tool", "This is Java 17."),
    "hello-static": (None, "static", "Found index.html: a static site", "These are files"),
    "hello-procfile": (
        None,
        "python-3.11",
        "Process worker: python tasks.py work",
        "Hello from a web process!",
    ),
    "hello-monorepo": ("shop", "static", "Found index.html in public/", "Hello from the shop!"),
    "hello-monorepo/web": ("web", "python-3.11", "Found requirements.txt", "Hello from Berth!"),
}


@pytest.fixture(scope="module")
def repositories(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitServer]:
    """Where a buildpack comes from."""
    client = docker.from_env()
    address = address_of(client.networks.get("bridge").attrs)
    client.close()
    with git_server(tmp_path_factory.mktemp("repositories"), address) as server:
        server.repository("greeting", texts(EXAMPLES / "hello-buildpack" / "buildpack"))
        yield server


@pytest.fixture(scope="module")
async def here(
    tmp_path_factory: pytest.TempPathFactory, further_images: None, repositories: GitServer
) -> AsyncIterator[Platform]:
    bundle = next((path for path in BUNDLES if path.exists()), None)
    settings = {} if bundle is None else {"BUILDER_CA_BUNDLE": str(bundle)}
    # Only what an app's own source names: the API takes no address without TLS.
    settings["BUILDER_ALLOW_PRIVATE_GIT"] = "true"
    settings["NODE_AGENT_ALLOWED_HOST_PORTS"] = f"[{httpx.URL(repositories.url).port}]"
    folder = tmp_path_factory.mktemp("examples")
    async with platform(folder, "examples", NODE_AGENT_CPU_MILLIS="16000", **settings) as opened:
        yield opened


@pytest.fixture(scope="module")
async def customer(here: Platform) -> AsyncIterator[Customer]:
    async with here.customer() as administrator, here.customer() as found:
        await administrator.log_in(*ADMIN)
        await found.register("examples@example.org")
        path = f"/api/admin/organizations/{found.organization}/credits"
        await administrator.call("POST", path, json={"amount": "100"})

        async def funded() -> bool:
            return bool((await found.call("GET", "/api/paas/wallet"))["balance"]["micros"])

        await eventually(funded, what="the credit")
        yield found


@pytest.fixture(scope="module")
async def deployed(customer: Customer) -> AsyncIterator[dict[str, "asyncio.Task[dict[str, Any]]"]]:
    """All are begun at once, and built as the builder gets to them."""
    tasks = {name: asyncio.create_task(deploy(customer, name)) for name in CASES}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


async def deploy(customer: Customer, name: str) -> dict[str, Any]:
    example, _, _ = name.partition("/")
    app = await customer.create(name.replace("/", "-"), build={"folder": CASES[name][0]})
    return await ended_with_log(customer, app, folder(EXAMPLES / example))


async def ended_with_log(customer: Customer, app: str, source: bytes) -> dict[str, Any]:
    ended = await customer.ended(await customer.deploy(app, source))
    page = await customer.call("GET", f"/api/paas/deployments/{ended['id']}/log?limit=1000")
    return {**ended, "lines": [line["text"] for line in page["lines"]]}


@pytest.mark.promise("R7.4", "R7.5", "U10", "P9")
@pytest.mark.parametrize("name", CASES)
async def test_it_is_found_out_and_answers(
    here: Platform, customer: Customer, deployed: "dict[str, asyncio.Task[dict[str, Any]]]", name: str
) -> None:
    _, recipe, why, greeting = CASES[name]
    ended = await deployed[name]
    assert ended["status"] == "running", (ended["reason"], ended["lines"][-30:])
    assert ended["recipe"] == recipe
    assert any(line.startswith(why) for line in ended["lines"]), ended["lines"][:5]
    view = await customer.status(ended["app"], "running")
    hostname = httpx.URL(view["url"]).host
    await customer.answers(hostname, greeting)
    assert (await customer.visit(hostname)).status_code == 200

    # No compiler, no certificates of the operator's, no root: what was needed to build has stayed behind.
    client = docker.from_env()
    try:
        [container] = [
            found
            for found in here.containers()
            if found.labels["berth.workload"] == ended["app"] and found.labels["berth.process"] == "web"
        ]
        image = client.images.get(ended["image"])
        probe = "id -u; ls /run; command -v gcc cc make javac go composer || echo none"
        said = container.exec_run(["sh", "-c", probe]).output
        assert isinstance(said, bytes)
        words = said.decode().split()
        assert int(words[0]) >= 100_000
        assert "berth" not in words
        assert words[-1] == "none", words
        assert image.attrs["Config"]["User"] not in ("", "root", "0")
        assert not any("CERT" in line or "CA_BUNDLE" in line for line in image.attrs["Config"]["Env"])
        assert not any("ca.pem" in layer["CreatedBy"] for layer in image.history())
    finally:
        client.close()


def texts(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text() for p in path.rglob("*") if p.is_file()}


@pytest.mark.promise("U10", "U11")
async def test_an_app_is_made_by_the_buildpacks_it_lists(customer: Customer, repositories: GitServer) -> None:
    listed = f"{repositories.url}/greeting#main\n"
    files = texts(EXAMPLES / "hello-buildpack" / "app") | {".buildpacks": listed}
    app = await customer.create("hello-buildpack")
    variable = {"value": "a variable", "scope": "build"}
    await customer.call("PATCH", f"/api/paas/apps/{app}/variables", json={"GREETED_BY": variable})
    ended = await ended_with_log(customer, app, archive(files))
    assert (ended["status"], ended["recipe"]) == ("running", "buildpacks"), ended["lines"][-30:]
    assert "-----> Greeting app detected" in ended["lines"]
    view = await customer.status(app, "running")
    hostname = httpx.URL(view["url"]).host
    await customer.answers(hostname, "Hello from a buildpack, by a variable, as 1")
    visited = await customer.visit(hostname)
    assert (visited.status_code, visited.text.strip().endswith("in /app")) == (200, True)


@pytest.mark.promise("U11")
async def test_an_app_is_made_by_a_builder_image(customer: Customer) -> None:
    example = EXAMPLES / "hello-buildpack"
    files = texts(example / "app") | {"server.pl": (example / "buildpack" / "server.pl").read_text()}
    async with cnb_images("examples-cnb") as images:
        app = await customer.create("hello-cnb", build={"builder": images.builder})
        ended = await ended_with_log(customer, app, archive(files))
        assert (ended["status"], ended["recipe"]) == ("running", "cnb"), ended["lines"][-30:]
        detail = await customer.call("GET", f"/api/paas/apps/{app}")
        assert {name: process["command"] for name, process in detail["processes"].items()} == {
            "web": "/cnb/process/web",
            "worker": "/cnb/process/worker",
        }
        hostname = httpx.URL(detail["url"]).host
        await customer.answers(hostname, "Hello from a buildpack, by a lifecycle, as 1")
        assert (await customer.visit(hostname)).status_code == 200
