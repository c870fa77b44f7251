"""Jobs on the volumes of their app: mounted for them too, taken from under none, and never old data."""

import asyncio
import os
from datetime import timedelta
from typing import Any

from contracts.copies import CopyClaim
from contracts.events import JobFinished, RolloutFinished
from contracts.ids import new_id
from contracts.jobs import Job, NodeJob
from contracts.workload import NodeWorkload, Slot, Volume, WorkloadSpec
from node_agent.commands import run
from node_agent.desired import Failure, Record
from node_agent.mounts import MOVED, Held, settled, withdrawn

from tests.harness import eventually
from tests.node_agent.conftest import next_release, spec
from tests.volumes.conftest import Fleet, volume


def job(
    fleet: Fleet, of: WorkloadSpec, command: str, revision: int = 1, home: int = 0, **more: Any
) -> NodeJob:
    wanted = Job.model_validate(
        {
            "id": new_id("job"),
            "kind": "run",
            "spec": of,
            "command": command,
            "timeout_seconds": 60.0,
            "start_before": fleet.harness.clock.now() + timedelta(seconds=60),
            **more,
        }
    )
    slots = (Slot(process="run", index=0),)
    workload = NodeWorkload(node="n1", revision=revision, home=home, spec=of, slots=slots)
    return NodeJob(job=wanted, workload=workload)


async def give(fleet: Fleet, wanted: NodeJob) -> NodeJob:
    await fleet.bus.bucket("jobs").put(f"{wanted.node}.{wanted.job.id}", wanted.model_dump_json().encode())
    return wanted


async def begun(fleet: Fleet, wanted: NodeJob) -> None:
    async def look() -> bool:
        jobs = await fleet.engines["n1"].jobs()
        return [i.state for i in jobs if i.identity.job == wanted.job.id] == ["running"]

    await eventually(look, what="the begin of the job")


async def ended(fleet: Fleet, wanted: NodeJob) -> JobFinished:
    return await fleet.harness.event(JobFinished, lambda e: e.job == wanted.job.id)


async def served(fleet: Fleet, of: WorkloadSpec) -> None:
    told = await fleet.harness.event(
        RolloutFinished, lambda e: (e.workload, e.generation) == (of.id, of.generation)
    )
    assert told.ok, told.reason


async def test_a_job_has_what_its_app_has_and_keeps_it_when_the_app_stops(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,))
    await fleet.start("n1")
    await fleet.want("n1", app, 1)
    await served(fleet, app)
    data, stopped = fleet.data("n1", one), next_release(app, state="stopped")
    running = await give(fleet, job(fleet, app, "sleep 1000"))
    await begun(fleet, running)
    assert fleet.engines["n1"].mounts_of(running.job.id) == {"/data": str(data)}
    await fleet.want("n1", stopped, 2, 0)
    await served(fleet, stopped)
    assert data.exists(), "it is not taken from under the job"
    # Whatever the agent is killed in, the next one knows who has it.
    await fleet.crash("n1")
    await fleet.start("n1")
    await fleet.want("n1", next_release(stopped), 3, 0)
    await served(fleet, next_release(stopped))
    assert data.exists()
    await give(fleet, running.model_copy(update={"cancelled": True}))
    assert (await ended(fleet, running)).words == "it was cancelled"
    await fleet.gone(data)

    # That of a stopped app mounts it for itself, and lets go of it.
    alone = await give(fleet, job(fleet, stopped, "sleep 0.3"))
    await fleet.exists(data)
    assert (await ended(fleet, alone)).outcome == "succeeded"
    await fleet.gone(data)
    assert fleet.aside("n1") == []


async def test_a_job_that_was_created_before_the_machine_failed_finds_its_volume_again(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,), state="stopped")
    await fleet.start("n1")
    engine, starting = fleet.engines["n1"], asyncio.Event()

    async def hang(instance: str) -> None:
        starting.set()
        await asyncio.sleep(1000)

    start, engine.start = engine.start, hang  # type: ignore[method-assign]
    await fleet.want("n1", app, 1, 0)
    wanted = await give(fleet, job(fleet, app, "sleep 0.3"))
    await starting.wait()
    await fleet.crash("n1")
    data = fleet.data("n1", one)
    await asyncio.to_thread(run, "umount", str(data.parent))
    engine.start = start  # type: ignore[method-assign]
    await fleet.start("n1")
    await fleet.exists(data)
    assert (await ended(fleet, wanted)).outcome == "succeeded"
    await fleet.gone(data)
    assert engine.count("create") == 1


async def test_the_first_job_makes_the_volume_before_there_is_any_instance(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,), image=None)
    await fleet.start("n1")
    first = job(fleet, app.model_copy(update={"image": "app:1"}), "sleep 0.3", kind="release")
    await give(fleet, first)
    await asyncio.sleep(0.3)
    assert not await fleet.engines["n1"].jobs(), "its node has not heard of the app yet"
    await fleet.want("n1", app, 1, 0)
    data = await fleet.exists(fleet.data("n1", one))
    (data / "made").write_text("by the release phase")
    assert (await ended(fleet, first)).outcome == "succeeded"
    await fleet.gone(data)
    live = next_release(app, image="app:1")
    await fleet.want("n1", live, 2, 1)
    await served(fleet, live)
    assert (data / "made").read_text() == "by the release phase"


async def test_a_job_ends_before_the_last_of_its_data_goes_and_none_begins_on_it(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,))
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    data = await fleet.exists(fleet.data("n1", one))
    running = await give(fleet, job(fleet, app, "sleep 1000"))
    await begun(fleet, running)
    order = await fleet.order(app, "n1", "n2", "final")
    await fleet.want("n1", app, 2, 0, moving=True)
    end = await ended(fleet, running)
    assert (end.outcome, end.words) == ("cancelled", MOVED)
    late = await give(fleet, job(fleet, app, "sleep 1000"))
    end = await ended(fleet, late)
    assert (end.outcome, end.words, end.seconds) == ("cancelled", MOVED, 0)
    await fleet.complete(order, "n2")
    assert not data.exists()
    # Should the move not get on, everything goes on where it was.
    await fleet.want("n1", app, 3, 1)
    await fleet.exists(data)
    again = await give(fleet, job(fleet, app, "echo on", revision=3))
    assert (await ended(fleet, again)).outcome == "succeeded"


async def test_the_job_of_a_node_that_was_lost_ends_and_what_it_wrote_is_put_aside(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,))
    await fleet.start("n1")
    await fleet.want("n1", app, 1)
    data = await fleet.exists(fleet.data("n1", one))
    running = await give(fleet, job(fleet, app, "sleep 1000"))
    await begun(fleet, running)
    (data / "old").write_text("written after the copy")
    # Cut off meanwhile: it runs elsewhere, from a copy.
    late = await give(fleet, job(fleet, app, "sleep 1000", revision=2))
    await fleet.want("n1", app, 2, 0, home=1, proven=1)
    for one_of_old in (running, late):
        end = await ended(fleet, one_of_old)
        assert (end.outcome, end.words) == ("cancelled", MOVED)

    async def put_aside() -> bool:
        return len(fleet.aside("n1")) == 1

    await eventually(put_aside, what="the old volume")
    assert not data.exists()
    assert fleet.engines["n1"].count("create") == 2, "an instance and one job"


async def test_a_job_at_the_new_home_makes_the_copy_its_data_and_none_makes_it_empty(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,), state="stopped")
    await fleet.start("n1")
    claim = CopyClaim(id=new_id("cpy"), taken_at=fleet.harness.clock.now())
    wanted = await give(fleet, job(fleet, app, "true", revision=2, home=1))
    await fleet.want("n1", app, 2, 0, home=1, claim=claim)
    end = await ended(fleet, wanted)
    assert (end.outcome, end.words) == (
        "not_started",
        "it could not be started: the copy of its volumes is not on this node",
    )
    assert not (fleet.volumes("n1") / "files" / app.id).exists()


async def test_a_volume_that_grows_or_goes_ends_the_jobs_that_have_it(fleet: Fleet) -> None:
    one = volume(16)
    app = spec(volumes=(one,))
    await fleet.start("n1")
    await fleet.want("n1", app, 1)
    data = await fleet.exists(fleet.data("n1", one))
    (data / "kept").write_text("kept")
    running = await give(fleet, job(fleet, app, "sleep 1000"))
    await begun(fleet, running)
    larger = next_release(app, volumes=(one.model_copy(update={"size_mb": 32}),))
    await fleet.want("n1", larger, 2)
    end = await ended(fleet, running)
    assert (end.outcome, end.words) == ("cancelled", "its volume data grows")
    await served(fleet, larger)
    assert (data / "kept").read_text() == "kept"
    assert os.statvfs(data).f_blocks * os.statvfs(data).f_frsize > 24 * 2**20
    running = await give(fleet, job(fleet, larger, "sleep 1000", revision=2))
    await begun(fleet, running)
    without = next_release(larger, volumes=())
    await fleet.want("n1", without, 3)
    assert (await ended(fleet, running)).words == "its volume data was taken away"
    await served(fleet, without)

    async def put_aside() -> bool:
        return len(fleet.aside("n1")) == 1

    await eventually(put_aside, what="the volume")
    # One that was asked for before makes no empty one in its place.
    late = await give(fleet, job(fleet, larger, "echo on", revision=2))
    assert (await ended(fleet, late)).outcome == "succeeded"
    assert fleet.engines["n1"].count("create") == 6
    assert not (fleet.volumes("n1") / "files" / app.id / f"{one.id}.ext4").exists()


def test_what_a_job_may_have_follows_what_its_app_is_here() -> None:
    small = Volume(id=new_id("vol"), name="data", path="/data", size_mb=16)
    large = small.model_copy(update={"size_mb": 32})

    def told(of: WorkloadSpec, revision: int = 1, **more: Any) -> NodeWorkload:
        slots = (Slot(process="web", index=0),)
        return NodeWorkload(node="n1", revision=revision, spec=of, slots=slots, **more)

    app = spec(volumes=(small,))
    grown, deleted = next_release(app, volumes=(large,)), next_release(app, state="deleted")
    held, live = Held(home=1, volumes=(small,)), told(app, home=1)
    assert withdrawn(held, Record(desired=live, live=live)) is None
    assert withdrawn(held, Record(desired=told(app, home=2))) == MOVED
    assert withdrawn(held, Record(desired=told(app, home=1, moving=True))) == MOVED
    assert withdrawn(held, Record(desired=told(deleted, home=1))) == "its app was deleted"
    growing = Record(desired=told(grown, 2, home=1), live=live)
    assert withdrawn(held, growing) == "its volume data grows"
    assert not settled(growing, live), "it would be ended at once"
    failure = Failure(generation=grown.generation, fingerprint=grown.fingerprint(), reason="no room")
    failed = growing.model_copy(update={"failure": failure})
    assert withdrawn(held, failed) is None, "the release before goes on, with what it has"
    assert settled(failed, live)
    assert not settled(failed, told(app, 3)), "it has not heard of what came after"
    assert not settled(None, live)
