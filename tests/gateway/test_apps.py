"""What a customer does with apps: create, list, stop, start, restart, scale, delete."""

import asyncio
from typing import Any

import pytest
from contracts.api import AppDetail, AppList
from contracts.events import AppChanged, AppDeleted
from contracts.queries import Workloads, WorkloadsAfter
from contracts.workload import WorkloadSpec
from runtime.store import scoped

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World, rollout


async def post(customer: Customer, app: str, what: str, **body: Any) -> Any:
    return await customer.call("POST", f"/api/paas/apps/{app}/{what}", json=body or None)


@pytest.mark.promise("R5.5")
async def test_an_app_is_what_was_asked_for(here: World, customer: Customer) -> None:
    health = {"kind": "http", "path": "/up", "interval_seconds": 3.0, "timeout_seconds": 2.0}
    app = await customer.create(
        "asked-for",
        plan="medium",
        region="far",
        replicas=3,
        port=3000,
        health={**health, "retries": 5, "start_seconds": 20},
        build={"runtime": "python-3.11", "start_command": "python -m app"},
    )
    view = AppDetail.model_validate(await customer.call("GET", f"/api/paas/apps/{app}"))
    assert (view.region, view.plan, view.replicas, view.port) == ("far", "medium", 3, 3000)
    assert view.health.model_dump() == {**health, "command": (), "retries": 5, "start_seconds": 20.0}
    assert (view.build.runtime, view.build.start_command) == ("python-3.11", "python -m app")
    assert view.hourly.micros == 3 * 20_500
    # The port that was chosen counts more than the one the build found.
    spec = await here.build(await customer.deploy(app, SOURCE), port=9999)
    assert (spec.port, spec.replicas(), spec.limits) == (3000, 3, view.limits)


@pytest.mark.promise("U1")
async def test_the_list_comes_in_pages_the_newest_first(here: World) -> None:
    customer = await here.customer()
    apps = [await customer.create(f"listed-{number:03}") for number in range(51)]
    seen: list[str] = []
    after, pages = "", 0
    while True:
        page = AppList.model_validate(await customer.call("GET", f"/api/paas/apps{after}"))
        seen += [app.id for app in page.apps]
        pages += 1
        if page.next is None:
            break
        after = f"?after={page.next}"
    assert seen == apps[::-1]
    assert pages == 2
    admin = await here.administrator()
    every = await admin.call("GET", "/api/admin/paas/apps")
    assert {app["organization"] for app in every["apps"]} == {customer.organization}


@pytest.mark.promise("R12.1", "R12.4", "R15.3")
async def test_stop_and_start(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "sleeper")
    assert (await post(customer, app, "stop"))["status"] == "stopped"
    stopped = await here.spec(app)
    assert (stopped.state, stopped.generation, stopped.image) == ("stopped", spec.generation + 1, spec.image)
    assert (await post(customer, app, "stop"))["generation"] == stopped.generation
    view = await post(customer, app, "start")
    assert view["status"] == "deploying"
    started = await here.spec(app)
    assert (started.state, started.generation) == ("running", spec.generation + 2)
    assert started.fingerprint() == spec.fingerprint()
    await here.roll_out(started)
    assert (await post(customer, app, "start"))["generation"] == started.generation
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "running"


@pytest.mark.promise("R12.3")
async def test_a_restart_replaces_the_instances(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "again")
    view = await post(customer, app, "restart")
    assert view["status"] == "running"
    again = await here.spec(app)
    assert again.fingerprint() != spec.fingerprint()
    assert (again.image, again.release, again.generation) == (spec.image, spec.release, spec.generation + 1)
    await here.say(rollout(again, ok=False, running=1, reason="still starting"))
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["reason"]) == ("running", "local: still starting")
    await post(customer, app, "stop")
    assert (await post(customer, app, "restart"))["status"] == "deploying"
    assert (await here.spec(app)).state == "running"


async def test_nothing_starts_without_a_release(here: World, customer: Customer) -> None:
    app = await customer.create("empty-one")
    for what in ("start", "restart"):
        with pytest.raises(Refused, match="deploy it first") as refused:
            await post(customer, app, what)
        assert refused.value.status == 409


@pytest.mark.promise("R17.4")
async def test_scale(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "elastic")
    view = await post(customer, app, "scale", replicas=4)
    assert (view["replicas"], view["hourly"]["micros"], view["status"]) == (4, 4 * 9_600, "running")
    wide = await here.spec(app)
    assert (wide.replicas(), wide.generation) == (4, spec.generation + 1)
    assert wide.fingerprint() == spec.fingerprint()
    assert (await post(customer, app, "scale", replicas=4))["generation"] == wide.generation
    with pytest.raises(Refused, match="allows 4 instances"):
        await post(customer, app, "scale", replicas=5)
    with pytest.raises(Refused, match="it has: web"):
        await post(customer, app, "scale", replicas=1, process="worker")
    with pytest.raises(Refused, match="at least one"):
        await post(customer, app, "scale", replicas=0)
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["replicas"] == 4


async def test_every_process_counts_towards_the_plan(here: World, customer: Customer) -> None:
    app = await customer.create("workers", replicas=2)
    spec = await here.build(await customer.deploy(app, SOURCE), processes={"web": "w", "worker": "q"})
    await here.roll_out(spec)
    assert (await post(customer, app, "scale", replicas=2, process="worker"))["replicas"] == 4
    with pytest.raises(Refused, match="allows 4"):
        await post(customer, app, "scale", replicas=3, process="worker")
    # What the next build keeps, stays as often as it was; what it no longer has, goes.
    await here.roll_out(await here.build(await customer.deploy(app), processes={"worker": "q2", "web": "w2"}))
    spec = await here.build(await customer.deploy(app), processes={"worker": "q3"})
    assert {name: (p.command, p.replicas) for name, p in spec.processes.items()} == {"worker": ("q3", 2)}


@pytest.mark.promise("U14")
async def test_delete(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "shortlived")
    deployment = await customer.deploy(app)
    await customer.call("DELETE", f"/api/paas/apps/{app}")
    gone = (await here.harness.event(AppDeleted, lambda e: e.spec.id == app)).spec
    assert (gone.state, gone.generation) == ("deleted", spec.generation + 1)
    assert not gone.wants_instances
    assert app not in str(await customer.call("GET", "/api/paas/apps"))
    for method, path in (
        ("GET", f"/api/paas/apps/{app}"),
        ("DELETE", f"/api/paas/apps/{app}"),
        ("POST", f"/api/paas/apps/{app}/start"),
        ("GET", f"/api/paas/apps/{app}/deployments"),
        ("GET", f"/api/paas/deployments/{deployment}"),
        ("GET", f"/api/paas/deployments/{deployment}/log"),
    ):
        with pytest.raises(Refused) as refused:
            await customer.call(method, path)
        assert refused.value.status == 404, path
    # Its name is free at once, its source is gone.
    assert await customer.create("shortlived") != app
    sources = scoped("select count(*) from source s where scope.organization is not null and s.workload = %s")
    assert await here.host.runtime.store.read(sources, ("*", app)) == [(0,)]


async def test_a_snapshot_has_every_workload_the_deleted_too(here: World) -> None:
    customer = await here.customer()
    apps = [await customer.create(f"snapshot-{number}") for number in range(5)]
    await customer.call("DELETE", f"/api/paas/apps/{apps[2]}")
    bus = await here.harness.everybody()
    found: dict[str, WorkloadSpec] = {}
    after = None
    while True:
        page: Workloads = await bus.ask(WorkloadsAfter(after=after, limit=2))
        found |= {spec.id: spec for spec in page.specs}
        assert len(page.specs) <= 2
        after = page.next
        if after is None:
            break
    assert [found[app].state for app in apps] == ["running", "running", "deleted", "running", "running"]
    assert found[apps[2]].generation == 2


async def test_every_generation_is_published_once_and_whole(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "counted")
    for _ in range(3):
        await post(customer, app, "restart")
    await post(customer, app, "scale", replicas=2)
    await here.harness.settle()
    said = [e.spec for e in await here.harness.events(AppChanged) if e.spec.id == app]
    assert [spec.generation for spec in said] == [2, 3, 4, 5, 6]
    assert said[-1].restarts == 3


async def test_many_changes_at_once_lose_none(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "contended")
    await asyncio.gather(*(post(customer, app, "restart") for _ in range(10)))
    last = await here.spec(app)
    assert (last.generation, last.restarts) == (spec.generation + 10, 10)


async def test_one_of_many_gets_a_name(here: World, customer: Customer) -> None:
    body = {"name": "wanted-by-all", "plan": "small"}
    answers = await asyncio.gather(
        *(customer.client.post("/api/paas/apps", json=body, headers=customer.headers) for _ in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
