"""Volumes under real containers: the next release reads what one wrote, and a failed one gives way."""

import asyncio
import re

import pytest
from contracts.ids import new_id
from contracts.workload import HealthCheck, Process, Volume

from tests.harness import eventually
from tests.node_agent.conftest import World, next_release, spec, wanted
from tests.ports.docker_image import IMAGE
from tests.ports.engines import DockerHands

HEALTH = HealthCheck(kind="http", path="/", interval_seconds=0.5, timeout_seconds=2, start_seconds=20)


@pytest.fixture(autouse=True)
def kept_open(docker: DockerHands, monkeypatch: pytest.MonkeyPatch) -> None:
    async def close() -> None: ...

    monkeypatch.setattr(docker.engine, "close", close)


def writes(line: str) -> dict[str, Process]:
    return {"web": Process(command=f"echo {line} >> /data/starts && exec perl /answer.pl")}


@pytest.mark.promise("R14.5")
async def test_data_outlives_releases_and_is_nobody_elses(real: World, docker: DockerHands) -> None:
    volume = Volume(id=new_id("vol"), name="data", path="/data", size_mb=16)
    app = spec(image=IMAGE, health=HEALTH, processes=writes("one"), volumes=(volume,))
    await real.route(app, "hello.localhost")
    await real.want(wanted(app))
    await real.start()
    assert (await real.finished(app)).ok
    folder = real.harness.settings.state / "nodes" / "local" / "volumes"
    starts = folder / "mounts" / volume.id / "data" / "starts"
    assert starts.read_text() == "one\n"
    (name,) = await real.running(app)
    found = await asyncio.to_thread(docker.inspect, name)
    assert [(m["Destination"], m["Propagation"]) for m in found["Mounts"]] == [("/data", "private")]

    # Never two releases at a time, and the data stays.
    second = next_release(app, processes=writes("two"))
    await real.want(wanted(second, 2))
    assert (await real.finished(second)).ok
    assert starts.read_text() == "one\ntwo\n"

    # One that fails gives way to the one before, on the same data.
    broken = next_release(second, processes={"web": Process(command="echo broken >> /data/starts; exit 3")})
    await real.want(wanted(broken, 3))
    assert not (await real.finished(broken)).ok
    await real.answers("hello.localhost", "web-1 8080")
    assert re.fullmatch(r"one\ntwo\n(broken\n){3,}two\n", starts.read_text())

    # Stopped, nothing is mounted; started again with a larger volume, everything is there.
    stopped = next_release(second, generation=broken.generation + 1, state="stopped")
    await real.want(wanted(stopped, 4))

    async def let_go() -> bool:
        return not starts.exists()

    await eventually(let_go, what="the end of the mount")
    larger = volume.model_copy(update={"size_mb": 32})
    again = next_release(second, generation=broken.generation + 2, volumes=(larger,))
    await real.want(wanted(again, 5))
    assert (await real.finished(again)).ok
    assert starts.read_text().endswith("two\ntwo\n")

    # Its end takes a while, and is forgotten by the scheduler meanwhile.
    deaf = Process(command="trap '' TERM; perl /answer.pl & while :; do sleep 1; done")
    slow = next_release(again, processes={"web": deaf}, grace_seconds=3)
    await real.want(wanted(slow, 6))
    assert (await real.finished(slow)).ok
    (name,) = await real.running(app)
    deleted = next_release(slow, generation=slow.generation + 1, state="deleted")
    await real.want(wanted(deleted, 7))
    record = folder.parent / "workloads" / f"{app.id}.json"

    async def told() -> bool:
        return (await real.get("hello.localhost"))[0] == 404

    await eventually(told, what="the end of its routes")
    await asyncio.sleep(0.5)
    await real.bus.bucket("desired").delete(f"local.{app.id}")
    aside = folder / "aside"

    async def put_aside() -> bool:
        return aside.is_dir() and any(aside.iterdir())

    await eventually(put_aside, what="the volume")
    assert not starts.parent.parent.exists()

    async def forgotten() -> bool:
        return not record.exists()

    await eventually(forgotten, what="the end of what was known of it")
