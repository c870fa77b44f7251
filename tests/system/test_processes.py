"""An app of several processes, from its Procfile to the end of its instances, through the API."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from contracts.events import InstanceStarted, InstanceStopped
from contracts.ids import new_id

from tests.customer import Customer, Refused, archive
from tests.harness import Servers, eventually
from tests.world import World, world_of


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_of("processes", running, tmp_path_factory) as opened:
        yield opened


@pytest.fixture
async def customer(here: World) -> AsyncIterator[Customer]:
    async with here.customer() as found:
        await found.register(f"{new_id('usr')}@example.org")
        await here.paying(found)
        yield found


def source(release: str) -> bytes:
    dockerfile = 'FROM berth/python:3.11\nCMD ["python3", "app.py"]\n'
    files = {"Dockerfile": dockerfile, "app.py": "print('hello')\n"}
    return archive({**files, "Procfile": f"worker: sleep 1000\nclock: sleep 1000\n{release}"})


async def slots(here: World, app: str, wanted: dict[str, int]) -> list[Any]:
    """The instances, once there are so many of each process."""

    async def look() -> list[Any] | None:
        found = list(await here.engine.instances(app))
        counted = dict.fromkeys(wanted, 0)
        for instance in found:
            process = instance.identity.slot.process
            counted[process] = counted.get(process, 0) + 1
        settled = counted == wanted and all(i.state == "running" for i in found)
        return [*found, None] if settled else None

    found = await eventually(look, seconds=20, what=f"{wanted}")
    return found[:-1]


@pytest.mark.promise("U16", "R12.3", "R12.4")
async def test_processes_are_scaled_stopped_and_come_back(here: World, customer: Customer) -> None:
    app = await customer.create("many")
    ended = await customer.ended(await customer.deploy(app, source("")))
    assert ended["status"] == "running", ended
    scale = f"/api/paas/apps/{app}/scale"
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    processes = {name: p["replicas"] for name, p in view["processes"].items()}
    assert processes["worker"] == processes["clock"] == 0
    told = [note.split()[2] for note in ended["notes"]]
    assert told == ["clock", "worker"]
    await customer.call("POST", scale, json={"process": "worker", "replicas": 2})
    await customer.call("POST", scale, json={"process": "clock", "replicas": 1})
    with pytest.raises(Refused) as refused:
        await customer.call("POST", scale, json={"process": "release", "replicas": 1})
    assert refused.value.status == 422
    wanted = {**dict.fromkeys(processes, 0), "worker": 2, "clock": 1}
    if "web" in processes:
        wanted["web"] = 1
    await slots(here, app, wanted)
    # Stopped: nothing of it runs, and every meter has ended. Restarted: as many as before.
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    await slots(here, app, {})
    assert await open_meters(here, app) == set()
    await customer.call("POST", f"/api/paas/apps/{app}/restart")
    before = {i.identity.instance for i in await slots(here, app, wanted)}
    await customer.status(app, "running")
    assert await open_meters(here, app) == before
    # Restarted while it runs: every instance is another one.
    await customer.call("POST", f"/api/paas/apps/{app}/restart")

    async def renewed() -> bool:
        now = {i.identity.instance for i in await slots(here, app, wanted)}
        return not now & before

    await eventually(renewed, seconds=20, what="new instances")


async def open_meters(here: World, app: str) -> set[str]:
    async def look() -> set[str]:
        started = {e.instance for e in await here.harness.events(InstanceStarted) if e.workload == app}
        stopped = {e.instance for e in await here.harness.events(InstanceStopped) if e.workload == app}
        return started - stopped

    await here.harness.settle()
    return await look()


async def test_a_release_phase_runs_once_in_the_new_image_and_its_failure_keeps_the_old(
    here: World, customer: Customer
) -> None:
    app = await customer.create("phased")
    first = await customer.ended(await customer.deploy(app, source("release: echo migrated\n")))
    assert first["status"] == "running", first
    log = [data async for kind, data in customer.log(first["id"]) if kind == "log"]
    assert [line["text"] for line in log if line["step"] == "release"] == ["migrated"]
    assert [line["sequence"] for line in log] == list(range(1, len(log) + 1))
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert "release" not in view["processes"]
    listed = (await customer.call("GET", f"/api/paas/apps/{app}/jobs"))["jobs"]
    assert [(job["kind"], job["status"], job["deployment"]) for job in listed] == [
        ("release", "succeeded", first["id"])
    ]
    second = await customer.ended(await customer.deploy(app, source("release: echo no; exit 9\n")))
    assert (second["status"], second["failed_step"], second["exit_code"]) == ("failed", "release", 9)
    assert second["reason"] == "the release phase failed: exit code 9"
    assert second["log_tail"] == ["no"]
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["deployment"]) == ("running", first["id"])
    assert httpx.URL(view["url"]).host == "phased.localhost"


async def test_a_command_runs_in_the_apps_image_and_its_output_is_kept(
    here: World, customer: Customer
) -> None:
    app = await customer.create("commands")
    assert (await customer.ended(await customer.deploy(app, source(""))))["status"] == "running"
    body = {"command": "echo one; env DYNO; exit 4"}
    job = await customer.call("POST", f"/api/paas/apps/{app}/run", json=body)

    async def over() -> Any:
        found = await customer.call("GET", f"/api/paas/jobs/{job['id']}")
        return found if found["finished_at"] else None

    found = await eventually(over, what="its end")
    assert (found["status"], found["exit_code"], found["reason"]) == ("failed", 4, "exit code 4")
    page = await customer.call("GET", f"/api/paas/jobs/{job['id']}/log")
    assert ([line["text"] for line in page["lines"]], page["finished"]) == (["one", "run.1"], True)
