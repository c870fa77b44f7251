"""One-off work gets room and one node, and comes to an end, whoever falls silent."""

from datetime import timedelta
from typing import Any

import pytest
from contracts.errors import Conflict
from contracts.events import JobBlocked, JobCancelled, JobEnded, JobFinished, JobPlaced, JobRequested
from contracts.ids import new_id
from contracts.jobs import Job, NodeJob
from contracts.queries import NodeRemoved
from contracts.workload import Needs, WorkloadSpec
from runtime.service import Loop
from runtime.store import PLATFORM
from scheduler import jobs
from sqlalchemy import text

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import SMALL, heartbeat, spec
from tests.scheduler.test_nodes import nodes_of, pass_time


def job(stage: Stage, of: WorkloadSpec | None = None, **changes: Any) -> Job:
    return Job.model_validate(
        {
            "id": new_id("job"),
            "kind": "run",
            "spec": of or spec(),
            "command": "echo hello",
            "timeout_seconds": 60.0,
            "start_before": stage.harness.clock.now() + timedelta(seconds=60),
            **changes,
        }
    )


async def told(stage: Stage, node: str, wanted: Job) -> NodeJob:
    bucket = stage.bus.bucket("jobs")

    async def look() -> NodeJob | None:
        entry = await bucket.get(f"{node}.{wanted.id}")
        return None if entry is None else NodeJob.model_validate_json(entry.value)

    return await eventually(look, what=f"{wanted.id} on {node}")


async def ended(stage: Stage, wanted: Job) -> JobEnded:
    return await stage.harness.event(JobEnded, lambda e: e.job == wanted.id)


def finished(of: Job, node: str = "n1", **more: Any) -> JobFinished:
    return JobFinished(
        **{
            "node": node,
            "job": of.id,
            "workload": of.spec.id,
            "organization": of.spec.organization,
            "outcome": "succeeded",
            "exit_code": 0,
            "seconds": 1.5,
            **more,
        }
    )


async def free(stage: Stage, node: str = "n1") -> int:
    [(memory,)] = await stage.runtime.store.read("select free_memory_mb from node where name = %s", (node,))
    return int(memory)


async def test_a_job_gets_room_on_one_node_and_gives_it_back_at_its_end(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    before = await free(scheduler)
    wanted = job(scheduler)
    await scheduler.harness.publish(JobRequested(job=wanted))
    found = await told(scheduler, "n1", wanted)
    assert found.job.command == "echo hello"
    assert [str(slot) for slot in found.workload.slots] == ["run.1"]
    assert await free(scheduler) == before - wanted.spec.limits.memory_mb
    placed = await scheduler.harness.event(JobPlaced, lambda e: e.job == wanted.id)
    assert placed.placed_on == "n1"
    # Another node's word does not count, and the same word twice is one end.
    await scheduler.harness.publish(finished(wanted, "n2", outcome="failed", exit_code=1))
    await scheduler.harness.publish(finished(wanted), finished(wanted, outcome="failed"))
    end = await ended(scheduler, wanted)
    assert (end.outcome, end.exit_code, end.seconds, end.kind) == ("succeeded", 0, 1.5, "run")

    async def gone() -> bool:
        return await scheduler.bus.bucket("jobs").get(f"n1.{wanted.id}") is None

    await eventually(gone, what="the end of its key")
    assert await free(scheduler) == before
    # Whoever asks for it again hears the same end, and nothing is begun again.
    await scheduler.harness.publish(JobRequested(job=wanted))
    await scheduler.harness.settle()
    ends = [e for e in await scheduler.harness.events(JobEnded) if e.job == wanted.id]
    assert [e.outcome for e in ends] == ["succeeded", "succeeded"]
    assert await gone()


async def test_release_phases_of_an_app_run_one_after_the_other(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=100_000)
    app = spec()
    first, second = (job(scheduler, app, kind="release") for _ in range(2))
    first, second = sorted((first, second), key=lambda j: j.id)
    await scheduler.harness.publish(JobRequested(job=first), JobRequested(job=second))
    await told(scheduler, "n1", first)
    await scheduler.harness.settle()
    assert await scheduler.bus.bucket("jobs").get(f"n1.{second.id}") is None
    await scheduler.harness.publish(finished(first))
    await told(scheduler, "n1", second)


async def test_a_job_without_room_waits_and_ends_with_the_reason(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=64)
    wanted = job(scheduler)
    await scheduler.harness.publish(JobRequested(job=wanted))
    await scheduler.harness.settle()
    assert await scheduler.harness.events(JobEnded) == []
    why = await scheduler.harness.event(JobBlocked, lambda e: e.job == wanted.id)
    assert "memory short by" in why.reasons["n1"]
    scheduler.harness.clock.advance(61)
    end = await ended(scheduler, wanted)
    assert end.outcome == "not_started"
    assert "n1: memory short by" in str(end.words)


async def test_a_job_takes_what_its_plan_requests(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=64)
    wanted = job(scheduler, spec(limits=SMALL.model_copy(update={"memory_request_mb": 48})))
    await scheduler.harness.publish(JobRequested(job=wanted))
    await told(scheduler, "n1", wanted)
    assert (await scheduler.node("n1")).allocated.memory_mb == 48


async def test_a_job_goes_where_its_image_and_its_runtime_are_at_home(scheduler: Stage) -> None:
    await scheduler.joins("n1", architecture="x86_64")
    needs = Needs(architecture="aarch64", runtime="runsc")
    wanted = job(scheduler, spec(needs=needs))
    await scheduler.harness.publish(JobRequested(job=wanted))
    why = await scheduler.harness.event(JobBlocked, lambda e: e.job == wanted.id)
    assert why.reasons == {"n1": "its engine has no runtime runsc"}
    await scheduler.joins("n2", architecture="aarch64", runtimes=("runc",))
    await scheduler.harness.event(JobBlocked, lambda e: e.job == wanted.id and "n2" in e.reasons)
    await scheduler.joins("n3", architecture="aarch64", runtimes=("runc", "runsc"))
    await told(scheduler, "n3", wanted)


async def test_a_job_whose_node_is_gone_for_good_is_lost(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    wanted = job(scheduler)
    await scheduler.harness.publish(JobRequested(job=wanted))
    await told(scheduler, "n1", wanted)
    scheduler.harness.clock.advance(60 + 60 + 121)
    await scheduler.report(heartbeat("n1", boot="another", at=scheduler.harness.clock.now()))
    assert (await ended(scheduler, wanted)).outcome == "lost"


async def test_a_job_that_cannot_be_read_holds_up_no_other(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    bad, good = sorted((job(scheduler), job(scheduler)), key=lambda j: j.id)
    await scheduler.harness.publish(JobRequested(job=bad))
    await told(scheduler, "n1", bad)
    async with scheduler.runtime.store.transaction(PLATFORM) as tx:
        broken = text("update job set body = '{}', written = false where id = :job")
        await tx.execute(broken, {"job": bad.id})
    await scheduler.harness.publish(JobRequested(job=good))
    await told(scheduler, "n1", good)
    scheduler.harness.clock.advance(60 + 60 + 121)
    assert (await ended(scheduler, good)).outcome == "lost"


async def test_a_job_is_cancelled_before_it_has_a_node_and_after(scheduler: Stage) -> None:
    waiting = job(scheduler)

    def cancelled(of: Job) -> JobCancelled:
        return JobCancelled(job=of.id, workload=of.spec.id, organization=of.spec.organization)

    await scheduler.harness.publish(JobRequested(job=waiting), cancelled(waiting))
    assert (await ended(scheduler, waiting)).outcome == "cancelled"
    await scheduler.joins("n1")
    placed = job(scheduler)
    await scheduler.harness.publish(JobRequested(job=placed))
    assert not (await told(scheduler, "n1", placed)).cancelled
    await scheduler.harness.publish(cancelled(placed))

    async def is_told() -> bool:
        return (await told(scheduler, "n1", placed)).cancelled

    await eventually(is_told, what="the word of it")


async def test_a_job_that_is_cancelled_before_it_is_heard_of_ends_all_the_same(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    wanted = job(scheduler)
    cancelled = JobCancelled(job=wanted.id, workload=wanted.spec.id, organization=wanted.spec.organization)
    await scheduler.harness.publish(cancelled, JobRequested(job=wanted))
    assert (await told(scheduler, "n1", wanted)).job.id == wanted.id

    async def is_told() -> bool:
        return (await told(scheduler, "n1", wanted)).cancelled

    await eventually(is_told, what="the word of its end")


async def test_jobs_that_find_no_room_keep_nobody_waiting_who_does(
    scheduler: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "BATCH", 2)
    await scheduler.joins("n1")
    nowhere = spec(region="us")
    first = [job(scheduler, nowhere, id=f"job_{i:026d}") for i in range(3)]
    await scheduler.harness.publish(*(JobRequested(job=one) for one in first))

    async def blocked() -> bool:
        return {one.id for one in first} == {e.job for e in await scheduler.harness.events(JobBlocked)}

    await eventually(blocked, what="jobs that find no room")
    wanted = job(scheduler)
    await scheduler.harness.publish(JobRequested(job=wanted))
    await told(scheduler, "n1", wanted)
    work = loop(scheduler, "jobs").work
    assert not await work(), "and nothing more is to be done for those at once"


async def test_a_job_that_never_had_a_node_is_forgotten_as_others_are(scheduler: Stage) -> None:
    wanted = job(scheduler)
    await scheduler.harness.publish(JobRequested(job=wanted))
    await scheduler.harness.event(JobBlocked, lambda e: e.job == wanted.id)
    cancelled = JobCancelled(job=wanted.id, workload=wanted.spec.id, organization=wanted.spec.organization)
    await scheduler.harness.publish(cancelled)
    await ended(scheduler, wanted)
    for days, left in ((6, 1), (2, 0)):
        scheduler.harness.clock.advance(days * 86_400)
        await loop(scheduler, "forget jobs").work()
        assert len(await scheduler.runtime.store.look("select 1 from job")) == left


def loop(stage: Stage, name: str) -> Loop:
    [found] = [one for one in stage.harness.hosts["scheduler"].service.loops if one.name == name]
    return found


async def test_a_node_is_not_removed_under_its_jobs_by_mistake(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    wanted = job(scheduler)
    await scheduler.harness.publish(JobRequested(job=wanted))
    await told(scheduler, "n1", wanted)
    with pytest.raises(Conflict, match="1 jobs are at work on n1"):
        await scheduler.bus.ask(NodeRemoved(node="n1"))


async def test_a_machine_under_the_name_of_a_removed_one_has_nothing_to_do_with_its_jobs(
    scheduler: Stage,
) -> None:
    await scheduler.joins("n1")
    later = scheduler.harness.clock.now() + timedelta(hours=1)
    wanted, other = job(scheduler, start_before=later), job(scheduler, start_before=later)
    await scheduler.harness.publish(JobRequested(job=wanted))
    await told(scheduler, "n1", wanted)
    await pass_time(scheduler, nodes_of(scheduler), 200)
    await scheduler.bus.ask(NodeRemoved(node="n1", force=True))
    await scheduler.report(heartbeat("n1", boot="another", at=scheduler.harness.clock.now()))
    await scheduler.harness.publish(JobRequested(job=other))
    await told(scheduler, "n1", other)
    end = await ended(scheduler, wanted)
    assert (end.outcome, end.words) == ("lost", "its node n1 was taken out")
    await scheduler.harness.publish(finished(wanted))
    await scheduler.harness.settle()
    assert (await scheduler.node()).allocated.memory_mb == other.spec.limits.memory_mb

    async def gone() -> bool:
        return await scheduler.bus.bucket("jobs").get(f"n1.{wanted.id}") is None

    await eventually(gone, what="the end of its key")
