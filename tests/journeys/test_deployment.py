"""One app through the whole platform on the real engine, as a customer and a visitor see it."""

import asyncio
import itertools
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import docker
import httpx
import nats
import pytest
from contracts.ids import new_id
from contracts.reports import NodeHeartbeat
from docker.models.containers import Container
from nats.aio.msg import Msg

from tests.customer import Customer, Refused, archive, folder, hello
from tests.harness import EVERYTHING, SECRET, eventually
from tests.platform import ADMIN, Platform, platform

# Half a minute, and a tenth of it more or less: nodes do not report all at the same moment.
LATE = 34
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """Everything in one process, as the embedded platform runs it; an hour of billing lasts 4 seconds, and
    there is room for the apps of all tests."""
    more = {"BILLING_PERIOD_SECONDS": "4", "NODE_AGENT_CPU_MILLIS": "16000"}
    async with platform(tmp_path_factory.mktemp("journey"), "journey", **more) as opened:
        yield opened


@pytest.fixture(scope="module", autouse=True)
async def heartbeats(here: Platform) -> AsyncIterator[list[tuple[float, NodeHeartbeat]]]:
    """What the node reports of itself from the first test on, and when."""
    heard: list[tuple[float, NodeHeartbeat]] = []

    async def hear(message: Msg) -> None:
        heard.append((time.monotonic(), NodeHeartbeat.model_validate_json(message.data)))

    client = await nats.connect(here.running.nats.url, user=EVERYTHING, password=SECRET)
    await client.subscribe(f"{NodeHeartbeat.name}.{here.node}", cb=hear)
    yield heard
    await client.close()


@pytest.fixture(scope="module")
async def administrator(here: Platform) -> AsyncIterator[Customer]:
    async with here.customer() as customer:
        await customer.log_in(*ADMIN)
        yield customer


@pytest.fixture
async def customer(
    here: Platform, administrator: Customer, request: pytest.FixtureRequest
) -> AsyncIterator[Customer]:
    """Somebody new, with 25.00 in the wallet."""
    async with here.customer() as found:
        await found.register(f"{new_id('usr')}@example.org")
        await administrator.call(
            "POST", f"/api/admin/organizations/{found.organization}/credits", json={"amount": "25.00"}
        )
        await eventually(lambda: balance_is(found, 25_000_000), what="the credit")
        yield found


async def balance(customer: Customer) -> int:
    wallet = await customer.call("GET", "/api/paas/wallet")
    return int(wallet["balance"]["micros"])


async def balance_is(customer: Customer, micros: int) -> bool:
    return await balance(customer) == micros


@pytest.mark.promise(
    "R7.1",
    "R7.2",
    "R7.4",
    "R7.5",
    "R8.1",
    "R8.2",
    "R12.1",
    "R12.4",
    "R13.1",
    "R13.2",
    "R14.1",
    "R14.2",
    "R14.3",
    "R15.1",
    "R15.2",
    "R15.3",
    "U9",
    "U10",
    "D1",
)
async def test_an_app_lives_from_its_source_to_its_end(here: Platform, customer: Customer) -> None:
    app = await customer.create("garden")
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "created"
    deployment = await customer.deploy(app, folder(ROOT / "examples" / "hello-python"))

    # The log comes while the build runs, line after line, and says how it ended.
    sequences, seen_end = [], None
    async for kind, data in customer.log(deployment):
        if kind == "end":
            seen_end = data
        elif "sequence" in data:
            sequences.append(data["sequence"])
    assert sequences == list(range(1, len(sequences) + 1))
    assert len(sequences) > 3
    assert seen_end is not None

    ended = await customer.ended(deployment)
    assert ended["status"] == "running", ended
    assert ended["recipe"] == "python-3.11"
    view = await customer.status(app, "running")
    hostname = httpx.URL(view["url"]).host
    assert hostname == "garden.localhost"
    response = await customer.visit(hostname)
    assert response.status_code == 200, response.text

    # What runs is what the plan allows, and not more.
    [container] = here.containers()
    plans = {plan["name"]: plan for plan in (await customer.call("GET", "/api/paas/plans"))["plans"]}
    limits = plans["small"]["limits"]
    host = container.attrs["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == limits["memory_mb"] * 1024 * 1024
    assert host["CpuQuota"] == limits["cpu_millis"] * 100
    assert host["PidsLimit"] == limits["pids"]
    assert not host["Privileged"]
    assert host["CapDrop"] == ["ALL"]
    assert int(container.attrs["Config"]["User"].partition(":")[0]) >= 100_000
    top = container.top(ps_args="-eo uid,pid")["Processes"]
    assert all(int(uid) >= 100_000 for uid, _ in top)

    # It is paid for while it runs, and no longer.
    before = await balance(customer)
    await eventually(lambda: less_than(customer, before), seconds=20, what="a charge")
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    await customer.status(app, "stopped")
    await customer.silent(hostname)
    await eventually(lambda: none_running(here), what="the end of its process")
    last = await settled_balance(customer)
    await asyncio.sleep(2)
    assert await balance(customer) == last

    # It comes back from the same image, without a build.
    await customer.call("POST", f"/api/paas/apps/{app}/start")
    await customer.status(app, "running")
    await customer.answers(hostname, "ello")

    await customer.call("DELETE", f"/api/paas/apps/{app}")
    await eventually(lambda: none_left(here), what="the end of its container")
    await customer.silent(hostname)
    with pytest.raises(Refused) as refused:
        await customer.call("GET", f"/api/paas/apps/{app}")
    assert refused.value.status == 404


async def less_than(customer: Customer, micros: int) -> bool:
    return await balance(customer) < micros


async def none_running(here: Platform) -> bool:
    return all(c.status != "running" for c in here.containers())


async def none_left(here: Platform) -> bool:
    return not here.containers()


async def settled_balance(customer: Customer) -> int:
    """After the last charge for what ran before the stop: all of the usage is paid."""

    async def paid() -> bool:
        wallet, usage = [await customer.call("GET", f"/api/paas/{of}") for of in ("wallet", "usage")]
        spent = 25_000_000 - wallet["balance"]["micros"]
        return bool(wallet["accrued"]["micros"] == 0 and usage["total"]["micros"] == spent)

    await eventually(paid, seconds=20, what="the last charge")
    return await balance(customer)


@pytest.mark.promise("R7.4", "P11")
async def test_a_new_version_takes_over_and_a_broken_one_does_not(here: Platform, customer: Customer) -> None:
    app, view = await customer.live("meadow", hello("first"))
    hostname = httpx.URL(view["url"]).host
    await customer.answers(hostname, "first")
    second = await customer.ended(await customer.deploy(app, hello("second")))
    assert second["status"] == "running"
    await customer.answers(hostname, "second")

    gives_up = 'CMD ["python3", "-c", "print(\'I give up\'); raise SystemExit(3)"]'
    broken = archive({"Dockerfile": f"FROM berth/python:3.11\n{gives_up}\n"})
    third = await customer.ended(await customer.deploy(app, broken))
    assert third["status"] == "failed"
    # What it said before it gave up is there for who looks for the cause.
    await customer.said(app, "I give up")
    assert third["reason"]
    await customer.answers(hostname, "second")
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "running"
    assert len([c for c in here.containers() if c.labels["berth.workload"] == app]) == 1


@pytest.mark.promise("U15")
async def test_back_to_what_ran_before_and_built_anew(here: Platform, customer: Customer) -> None:
    app, view = await customer.live("undo", hello("first"))
    hostname = httpx.URL(view["url"]).host
    [first] = (await customer.call("GET", f"/api/paas/apps/{app}/deployments"))["deployments"]
    log = await customer.call("GET", f"/api/paas/deployments/{first['id']}/log")
    second = await customer.ended(await customer.deploy(app, hello("second")))
    await customer.answers(hostname, "second")

    begun = await customer.call("POST", f"/api/paas/apps/{app}/rollback")
    back = await customer.ended(begun["id"])
    await customer.answers(hostname, "first")
    assert (back["status"], back["rollback_of"], back["image"]) == ("running", first["id"], first["image"])
    assert back["notes"] == ["brings back deployment 1 with 1 of web"]
    assert back["created_at"] < back["finished_at"]
    # Nothing was built: its log is that of the build it goes back to.
    assert back["seconds"] is None
    assert await customer.call("GET", f"/api/paas/deployments/{back['id']}/log") == log

    again = await customer.ended(await customer.deploy(app))
    await customer.answers(hostname, "second")
    assert (again["rollback_of"], again["number"]) == (None, 4)
    assert again["seconds"] > 0
    assert second["image"] is not None


@pytest.mark.promise("R18.3")
async def test_another_plan_restarts_with_its_limits(here: Platform, customer: Customer) -> None:
    app, view = await customer.live("grower", hello("grown"))

    def running() -> list[Container]:
        return [one for one in here.containers() if one.labels["berth.workload"] == app]

    [before] = running()
    plans = {plan["name"]: plan for plan in (await customer.call("GET", "/api/paas/plans"))["plans"]}
    limits = plans["medium"]["limits"]
    assert before.attrs["HostConfig"]["Memory"] < limits["memory_mb"] * 1024 * 1024
    await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "medium"})

    async def grown() -> bool:
        hosts = [one.attrs["HostConfig"] for one in running() if one.id != before.id]
        return [(host["Memory"], host["CpuQuota"]) for host in hosts] == [
            (limits["memory_mb"] * 1024 * 1024, limits["cpu_millis"] * 100)
        ] and len(running()) == 1

    await eventually(grown, seconds=30, what="one instance with the plan's limits")
    await customer.answers(httpx.URL(view["url"]).host, "grown")


@pytest.mark.promise("R8.3")
async def test_a_failed_build_says_where_and_why(customer: Customer) -> None:
    app = await customer.create("ruin")
    source = archive({"Dockerfile": "FROM berth/python:3.11\nRUN echo before; exit 7\n"})
    ended = await customer.ended(await customer.deploy(app, source))
    assert ended["status"] == "failed"
    assert ended["exit_code"] == 7
    assert ended["failed_step"]
    page = await customer.call("GET", f"/api/paas/deployments/{ended['id']}/log")
    assert any("before" in line["text"] for line in page["lines"])


@pytest.mark.promise("R14.4")
async def test_two_organizations_share_no_network(
    here: Platform, administrator: Customer, customer: Customer
) -> None:
    app, _ = await customer.live("east", hello("east"))
    async with here.customer() as other:
        await other.register("neighbour@example.org", "Neighbour")
        await administrator.call(
            "POST", f"/api/admin/organizations/{other.organization}/credits", json={"amount": "1"}
        )
        neighbour, _ = await other.live("west", hello("west"))
        with pytest.raises(Refused) as refused:
            await other.call("GET", f"/api/paas/apps/{app}")
        assert refused.value.status == 404
    by_app = {c.labels["berth.workload"]: c for c in here.containers()}
    one, two = by_app[app], by_app[neighbour]
    networks = [set(c.attrs["NetworkSettings"]["Networks"]) for c in (one, two)]
    assert networks[0].isdisjoint(networks[1])
    [address] = [n["IPAddress"] for n in two.attrs["NetworkSettings"]["Networks"].values()]
    client = docker.from_env()
    try:
        probe = (
            "import socket,sys\n"
            f"try: socket.create_connection(({address!r}, 8080), 2)\n"
            "except OSError: sys.exit(42)\n"
        )
        assert one.id is not None
        assert client.containers.get(one.id).exec_run(["python3", "-c", probe]).exit_code == 42
    finally:
        client.close()


async def test_bad_input_is_told_what_to_do_and_leaves_nothing(customer: Customer) -> None:
    app = await customer.create("orderly")
    for source, word in ((archive({"../escape": "x"}), ".."), (b"not an archive", "tar")):
        with pytest.raises(Refused) as refused:
            await customer.upload(app, source)
        assert refused.value.status == 422
        assert set(refused.value.error) == {"code", "message", "details"}
        assert word in refused.value.error["message"]
    with pytest.raises(Refused) as empty:
        await customer.deploy(app)
    assert 400 <= empty.value.status < 500
    assert (await customer.call("GET", f"/api/paas/apps/{app}/deployments"))["deployments"] == []


async def test_a_release_phase_and_a_command_run_in_containers_of_their_own(
    here: Platform, customer: Customer
) -> None:
    app, _ = await customer.live("orchard", hello("first"))
    server = "import http.server; http.server.HTTPServer(('', 8080), http.server.SimpleHTTPRequestHandler)"
    files = {
        "Dockerfile": "FROM berth/python:3.11\nCOPY app.py /app.py\n",
        "app.py": f"{server}.serve_forever()\n",
        "Procfile": "web: python3 /app.py\nworker: sleep 1000\nrelease: echo migrated by $(id -u) as $DYNO\n",
    }
    ended = await customer.ended(await customer.deploy(app, archive(files)))
    assert ended["status"] == "running", ended
    assert ended["notes"] == ["the process worker is new and has no instance yet; POST …/scale gives it some"]
    page = await customer.call("GET", f"/api/paas/deployments/{ended['id']}/log")
    [migrated] = [line["text"] for line in page["lines"] if line["step"] == "release"]
    assert re.fullmatch(r"migrated by [1-9]\d{5,} as release\.1", migrated)
    files["Procfile"] = files["Procfile"].replace("$DYNO", "$DYNO; exit 3")
    broken = await customer.ended(await customer.deploy(app, archive(files)))
    assert (broken["status"], broken["failed_step"], broken["exit_code"]) == ("failed", "release", 3)
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["deployment"] == ended["id"]
    # A command sees the app's files, and costs what an instance costs.
    job = await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": "ls /; no-such-command"})

    async def over() -> Any:
        found = await customer.call("GET", f"/api/paas/jobs/{job['id']}")
        return found if found["finished_at"] else None

    found = await eventually(over, seconds=20, what="the end of the command")
    assert (found["status"], found["reason"]) == ("failed", "exit code 127: command not found")
    lines = (await customer.call("GET", f"/api/paas/jobs/{job['id']}/log"))["lines"]
    assert "app.py" in [line["text"] for line in lines]
    assert not [c for c in here.containers() if c.labels.get("berth.job")]


@pytest.mark.promise("R4.1")
async def test_the_node_reports_itself_twice_a_minute(
    here: Platform, customer: Customer, heartbeats: list[tuple[float, NodeHeartbeat]]
) -> None:
    app, _ = await customer.live("pulse", hello("beats"))

    async def told() -> NodeHeartbeat | None:
        """The one that comes by itself, when all has been quiet."""
        (before, _), (at, last) = heartbeats[-2:]
        mine = [one for one in last.instances if one.workload == app and one.usage is not None]
        return last if mine and 26 < at - before < LATE else None

    report = await eventually(told, seconds=70, every=1.0, what="a heartbeat half a minute after the last")
    assert len(report.instances) == len(here.containers())
    assert 0 < report.used.memory_mb < report.capacity.memory_mb
    assert 0 < report.used.disk_mb < report.capacity.disk_mb
    assert report.used.cpu_millis >= 0
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(heartbeats)]
    assert max(gaps) < LATE


_TALKS = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
for number in range(5000):
    print(f"line {number}")
sys.stdout.flush()
print("an error, with an umlaut: \u00fc", file=sys.stderr, flush=True)
print("x" * 20000, flush=True)
print("ready", flush=True)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        print(f"asked for {self.path}", flush=True)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.mark.promise("R8.5")
async def test_what_an_app_writes_is_read_by_its_customer(here: Platform, customer: Customer) -> None:
    source = archive({"main.py": _TALKS, "requirements.txt": "", "Procfile": "web: python main.py\n"})
    app, view = await customer.live("talker", source)
    await customer.visit(httpx.URL(view["url"]).host, "/some/page")
    await customer.said(app, "asked for /some/page")
    errors = (await customer.call("GET", f"/api/paas/apps/{app}/logs?stream=stderr"))["lines"]
    assert [line["text"] for line in errors] == ["an error, with an umlaut: \u00fc"]
    said: list[str] = []
    place = 0
    while lines := (
        page := await customer.call("GET", f"/api/paas/apps/{app}/logs?lines=1000&after={place}")
    )["lines"]:
        said += [line["text"] for line in lines if line["stream"] == "stdout"]
        place = page["next"]
    # All of it, once, in order; and a line of some length is cut, and says so.
    numbered = [text for text in said if text.startswith("line ")]
    assert numbered == [f"line {number}" for number in range(5000)]
    (long,) = [text for text in said if text.startswith("x")]
    assert 7_000 < len(long) < 20_000
    assert long.endswith("(the line is longer)")
    # It is still there when the app is not.
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    await customer.status(app, "stopped")
    await customer.said(app, "ready")
