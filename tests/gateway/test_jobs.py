"""Commands and release phases as a customer asks for them, with the scheduler and the nodes played."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contracts import jobs_api
from contracts.events import (
    AppChanged,
    InstanceCrashed,
    InstanceStopped,
    JobBlocked,
    JobCancelled,
    JobEnded,
    JobPlaced,
    JobRequested,
    PlacementBlocked,
)
from contracts.ids import new_id
from contracts.jobs import Job, JobLine
from contracts.reports import JobOutput
from contracts.workload import Slot
from gateway import sweeps
from gateway.tables import JobRow
from runtime.store import PLATFORM
from sqlalchemy import update

from tests.customer import Customer, Refused
from tests.gateway.test_views import exactly
from tests.gateway.world import SOURCE, World, decided, finished, rollout, succeeded
from tests.harness import eventually

MIGRATES = {"web": "python app.py", "release": "python migrate.py", "worker": "python work.py"}


def lines(*numbers: int) -> tuple[JobLine, ...]:
    at = datetime.now(UTC)
    return tuple(JobLine(sequence=n, at=at, stream="stdout", text=f"line {n}") for n in numbers)


def of(job: Job) -> dict[str, Any]:
    return {"job": job.id, "workload": job.spec.id, "organization": job.spec.organization}


def ended(job: Job, **more: Any) -> JobEnded:
    told = {"kind": job.kind, "deployment": job.spec.deployment, "outcome": "succeeded", "exit_code": 0}
    return JobEnded(**{**of(job), **told, "seconds": 2.5, **more})


async def asked(here: World, app: str, kind: str = "run", number: int = 1) -> Job:
    """The newest of so many."""

    async def look() -> Job | None:
        found = [e.job for e in await here.harness.events(JobRequested)]
        mine = {j.id: j for j in found if j.spec.id == app and j.kind == kind}
        return mine[max(mine)] if len(mine) == number else None

    return await eventually(look, what=f"{number} jobs")


async def say_lines(here: World, job: Job, node: str, *numbers: int) -> None:
    report = JobOutput(node=node, job=job.id, lines=lines(*numbers))
    await here.harness.client.publish(report.subject(), report.model_dump_json().encode())
    await here.harness.client.flush()


async def log(customer: Customer, job: str) -> list[str]:
    page = await customer.call("GET", f"/api/paas/jobs/{job}/log")
    return [line["text"] for line in page["lines"]]


async def test_a_line_no_text_holds_is_kept_as_one_and_loses_nobody_his(
    here: World, customer: Customer
) -> None:
    app, _ = await here.live(customer, "speaks-nul")
    jobs = []
    for number in (1, 2):
        await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": f"say {number}"})
        jobs.append(await asked(here, app, number=number))
        await here.say(JobPlaced(**of(jobs[-1]), placed_on="n1"))
    (line,) = lines(1)
    told = JobOutput(node="n1", job=jobs[0].id, lines=(line,)).model_dump(mode="json")
    told["lines"][0]["text"] = "a\0b"
    # One batch has both.
    await here.harness.client.publish("job.output.n1", json.dumps(told).encode())
    await say_lines(here, jobs[1], "n1", 1)

    async def kept() -> bool:
        return [await log(customer, job.id) for job in jobs] == [["a\ufffdb"], ["line 1"]]

    await eventually(kept, what="the lines")
    told = ended(jobs[0]).model_dump(mode="json")
    told["words"] = "killed\0"
    await here.say(JobEnded.model_validate(told))
    assert (await customer.call("GET", f"/api/paas/jobs/{jobs[0].id}"))["reason"] == "killed\ufffd"


async def test_a_command_is_asked_for_followed_and_ends(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "commanded")
    path = f"/api/paas/apps/{app}/run"
    view = await customer.call("POST", path, json={"command": "python manage.py check"})
    assert (view["status"], view["kind"], view["command"]) == ("queued", "run", "python manage.py check")
    job = await asked(here, app)
    assert (job.id, job.command, job.spec.image) == (view["id"], "python manage.py check", spec.image)
    await here.say(JobPlaced(**of(job), placed_on="n1"))
    assert (await customer.call("GET", f"/api/paas/jobs/{job.id}"))["status"] == "running"
    # Lines come live, from its node and from no other.
    await say_lines(here, job, "n2", 1, 2)
    await say_lines(here, job, "n1", 1, 2)

    async def arrived() -> bool:
        return await log(customer, job.id) == ["line 1", "line 2"]

    await eventually(arrived, what="the lines")
    # Three was lost on its way; the tail brings what it has.
    end = ended(job, outcome="failed", exit_code=3, words="exit code 3", tail=lines(4, 5), lines=5)
    await here.say(end, ended(job))
    view = await customer.call("GET", f"/api/paas/jobs/{job.id}")
    assert (view["status"], view["exit_code"], view["reason"], view["seconds"]) == (
        "failed",
        3,
        "exit code 3",
        2.5,
    )
    told = await log(customer, job.id)
    assert told == ["line 1", "line 2", "(this line was lost on its way)", "line 4", "line 5"]
    page = await customer.call("GET", f"/api/paas/jobs/{job.id}/log?after=4")
    assert ([line["text"] for line in page["lines"]], page["finished"]) == (["line 5"], True)
    listed = await customer.call("GET", f"/api/paas/apps/{app}/jobs")
    assert [j["id"] for j in listed["jobs"]] == [job.id]
    for path, model in (
        (f"/api/paas/apps/{app}/jobs", jobs_api.JobList),
        (f"/api/paas/jobs/{job.id}", jobs_api.JobView),
        (f"/api/paas/jobs/{job.id}/log", jobs_api.JobLogPage),
        (f"/api/paas/apps/{app}/activity", jobs_api.ActivityList),
    ):
        response = await customer.client.get(path, headers=customer.headers)
        exactly(model, response.content)
    stranger = await here.customer()
    for method, route in (("GET", ""), ("GET", "/log"), ("POST", "/cancel")):
        with pytest.raises(Refused) as refused:
            await stranger.call(method, f"/api/paas/jobs/{job.id}{route}")
        assert refused.value.status == 404


async def test_a_command_is_cancelled_and_asked_for_again_while_nobody_answers(
    here: World, customer: Customer
) -> None:
    app, _ = await here.live(customer, "patient")
    view = await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": "sleep 10"})
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(update(JobRow).values(told_at=here.harness.clock.now() - timedelta(seconds=61)))

    async def twice() -> bool:
        said = [e for e in await here.harness.events(JobRequested) if e.job.id == view["id"]]
        return len(said) >= 2

    door: Any = here.host.service.http
    await sweeps.sweep(door.state.desk)
    await eventually(twice, what="the second request")
    await customer.call("POST", f"/api/paas/jobs/{view['id']}/cancel")
    await here.harness.event(JobCancelled, lambda e: e.job == view["id"])


async def test_commands_need_a_release_money_and_room(here: World, customer: Customer) -> None:
    app = await customer.create("empty-yet")
    path = f"/api/paas/apps/{app}/run"
    with pytest.raises(Refused) as refused:
        await customer.call("POST", path, json={"command": "true"})
    assert refused.value.status == 409
    app, _ = await here.live(customer, "busy")
    path = f"/api/paas/apps/{app}/run"
    for _ in range(5):
        await customer.call("POST", path, json={"command": "true"})
    with pytest.raises(Refused) as refused:
        await customer.call("POST", path, json={"command": "true"})
    assert (refused.value.status, refused.value.error["details"]) == (429, {"most": 5})
    await here.balance(customer.organization, -1, sequence=9)
    with pytest.raises(Refused) as refused:
        await customer.call("POST", path, json={"command": "true"})
    assert refused.value.status == 402


async def released(here: World, customer: Customer, app: str, number: int = 1) -> tuple[str, Job]:
    """A deployment whose image is there, and its release phase."""
    deployment = await customer.deploy(app, SOURCE)
    request = await here.requested(deployment)
    await here.log(deployment, 1, 2)
    built = finished(request, succeeded(processes=MIGRATES))
    await here.say(built.model_copy(update={"lines": 2}))
    return deployment, await asked(here, app, "release", number)


async def test_a_release_phase_runs_before_the_switch_and_once(here: World, customer: Customer) -> None:
    app = await customer.create("migrated")
    deployment, job = await released(here, customer, app)
    assert job.command == "python migrate.py"
    assert job.spec.deployment == deployment
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], view["reason"]) == ("deploying", "its release phase runs before it goes live")
    await here.say(JobBlocked(**of(job), reasons={}))
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert view["reason"] == "its release phase waits: the region has no node online"
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "deploying"
    assert not [e for e in await here.harness.events(AppChanged) if e.spec.id == app]
    end = ended(job, tail=lines(1, 2), lines=2)
    await here.say(JobPlaced(**of(job), placed_on="local"), end)
    spec = await here.spec(app)
    assert spec.release is not None
    assert set(spec.processes) == {"web", "worker"}
    assert {name: p.replicas for name, p in spec.processes.items()} == {"web": 1, "worker": 0}
    await here.say(end.model_copy(update={"id": "another"}), decided(spec, "local"), rollout(spec))
    assert (await here.spec(app)).generation == spec.generation
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert view["status"] == "running"
    assert view["notes"] == ["the process worker is new and has no instance yet; POST …/scale gives it some"]
    # What it said is part of the deployment's log, behind the build, and in every page of it.
    page = await customer.call("GET", f"/api/paas/deployments/{deployment}/log")
    assert [(line["sequence"], line["step"]) for line in page["lines"]] == [
        (1, "build"),
        (2, "build"),
        (3, "release"),
        (4, "release"),
    ]
    assert page["finished"]
    page = await customer.call("GET", f"/api/paas/deployments/{deployment}/log?after=3")
    assert [line["text"] for line in page["lines"]] == ["line 2"]
    streamed = [data["sequence"] async for kind, data in customer.log(deployment) if kind == "log"]
    assert streamed == [1, 2, 3, 4]


async def test_a_failed_release_phase_fails_the_deployment_and_keeps_the_old_release(
    here: World, customer: Customer
) -> None:
    app, before = await here.live(customer, "careful")
    deployment, job = await released(here, customer, app)
    words = "exit code 1"
    await here.say(ended(job, outcome="failed", exit_code=1, words=words, tail=lines(1), lines=1))
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], view["reason"]) == ("failed", "the release phase failed: exit code 1")
    assert (view["failed_step"], view["exit_code"], view["log_tail"]) == ("release", 1, ["line 1"])
    assert (await here.spec(app)).generation == before.generation
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "running"
    # The next one is tried anew, once.
    _, again = await released(here, customer, app, number=2)
    assert again.id != job.id
    # A stop ends what is under way, and a late success brings nothing to life.
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    await here.harness.event(JobCancelled, lambda e: e.job == again.id)
    await here.say(ended(again))
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "stopped"


async def test_what_is_not_kept_of_a_long_output_is_counted(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "talkative")
    await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": "yes"})
    job = await asked(here, app)
    await here.say(JobPlaced(**of(job), placed_on="n1"), ended(job, tail=lines(9_999, 10_000), lines=10_000))
    last = await customer.call("GET", f"/api/paas/jobs/{job.id}/log?after=5000")
    assert [line["text"] for line in last["lines"]] == [
        "(4998 lines are not kept)",
        "line 9999",
        "line 10000",
    ]


@pytest.mark.promise("U21")
async def test_what_instances_suffer_is_shown_and_noted(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "suffering")
    crash = InstanceCrashed(
        node="local",
        instance=new_id("ins"),
        workload=app,
        organization=spec.organization,
        slot=Slot(process="web", index=0),
        exit_code=1,
        words="web.1 crashed 5 times in 2 minutes, next try in 40 s; the last time: exit code 1",
        crashes=5,
        seconds_away=40,
    )
    restarted = InstanceStopped(
        **crash.model_dump(include={"node", "instance", "workload", "organization", "slot"}),
        generation=spec.generation,
        deployment=spec.deployment,
        rate=spec.rate,
        started_at=crash.at,
        stopped_at=crash.at,
        reason="unhealthy",
        words="3 checks in a row failed: nothing answers on port 8080",
    )
    await here.say(crash, crash, restarted)
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["reason"]) == ("running", crash.words)
    noted = (await customer.call("GET", f"/api/paas/apps/{app}/activity"))["activity"]
    assert [(entry["kind"], entry["process"]) for entry in noted] == [
        ("restarted", "web.1"),
        ("crashed", "web.1"),
    ]
    assert noted[0]["words"] == (
        "web.1 was restarted: 3 checks in a row failed: nothing answers on port 8080"
    )
    # A new state is a new chance.
    await customer.call("POST", f"/api/paas/apps/{app}/restart")
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["reason"] != crash.words


async def test_a_job_that_waits_for_room_says_so(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "crowded")
    await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": "true"})
    job = await asked(here, app)
    blocked = JobBlocked(**of(job), reasons={"n1": "memory short by 256 MB"})

    async def shown() -> tuple[str, str | None]:
        view = await customer.call("GET", f"/api/paas/jobs/{job.id}")
        return view["status"], view["reason"]

    await here.say(blocked)
    assert await shown() == ("queued", "no node has room: n1: memory short by 256 MB")
    await here.say(JobPlaced(**of(job), placed_on="n1"), blocked.model_copy(update={"id": new_id("evt")}))
    assert await shown() == ("running", None)


async def test_a_lost_node_is_told_of_once_and_where_its_work_goes(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "moving")
    for number in (1, 2):
        blocked = PlacementBlocked(
            workload=app,
            organization=spec.organization,
            generation=spec.generation,
            deployment=spec.deployment,
            reasons={"n2": f"memory short by {number} MB"},
            lost=("local",),
        )
        await here.say(blocked)
    await here.say(decided(spec, "n2", later=1).model_copy(update={"lost": ("local",)}))
    noted = (await customer.call("GET", f"/api/paas/apps/{app}/activity"))["activity"]
    assert [(one["kind"], one["process"], one["words"]) for one in noted] == [
        ("moved", "", "local went offline; what ran there starts on n2"),
        ("moved", "", "local went offline, and no node has room: n2: memory short by 1 MB"),
    ]
