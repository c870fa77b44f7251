"""From a customer's wish to a node's order, on real servers: placed, blocked, woken, moved, gone."""

import asyncio
import itertools
from typing import Any

import pytest
from contracts.events import AlertRaised, AppChanged, AppDeleted, PlacementBlocked, PlacementDecided
from contracts.ids import new_id
from contracts.workload import Limits, Needs, Process, Slot
from psycopg.errors import CheckViolation
from runtime.store import PLATFORM
from scheduler import due, place
from scheduler.place import Placing
from scheduler.workloads import Workloads
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from tests.harness import Harness, eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import SMALL, heartbeat, newer, spec, stopped


def web(replicas: int) -> dict[str, Process]:
    return {"web": Process(replicas=replicas)}


def sized(memory_mb: int) -> Limits:
    return SMALL.model_copy(update={"memory_mb": memory_mb})


async def decided(stage: Stage, workload: str, generation: int = 1) -> PlacementDecided:
    return await stage.harness.event(
        PlacementDecided, lambda e: e.workload == workload and e.generation == generation
    )


async def blocked(stage: Stage, workload: str, generation: int = 1) -> PlacementBlocked:
    return await stage.harness.event(
        PlacementBlocked, lambda e: e.workload == workload and e.generation == generation
    )


# --- placed ------------------------------------------------------------------------------------------


async def test_what_a_plan_needs_of_a_node_is_what_nodes_say_of_themselves(scheduler: Stage) -> None:
    plain = heartbeat("n1").model_copy(update={"architecture": "x86_64", "runtimes": ("runc",)})
    walled = heartbeat("n2").model_copy(update={"architecture": "x86_64", "runtimes": ("runc", "runsc")})
    await scheduler.report(plain, walled)
    app = spec(needs=Needs(runtime="runsc"))
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n2", app, slots=1)
    other = spec(needs=Needs(architecture="aarch64"))
    await scheduler.harness.publish(AppChanged(spec=other))
    reasons = (await blocked(scheduler, other.id)).reasons
    assert reasons["n1"] == "it is x86_64, the image is for aarch64"


@pytest.mark.promise("R7.1", "R19.1")
async def test_a_workload_goes_to_a_node_of_its_region_which_is_told_everything(scheduler: Stage) -> None:
    await scheduler.joins("n1", region="us")
    await scheduler.joins("n2", region="eu")
    app = spec(processes=web(2))
    await scheduler.harness.publish(AppChanged(spec=app))
    event = await decided(scheduler, app.id)
    assert (event.nodes, event.deployment, event.organization) == (("n2",), app.deployment, app.organization)
    told = await scheduler.told("n2", app, slots=2)
    assert told.spec == app
    assert told.slots == (Slot(process="web", index=0), Slot(process="web", index=1))
    assert told.revision == 1
    node = await scheduler.node("n2")
    assert (node.allocated.cpu_millis, node.allocated.memory_mb, node.allocated.disk_mb) == (200, 256, 512)


@pytest.mark.promise("R17.2", "R19.2")
async def test_the_least_utilized_node_takes_it_and_more_replicas_stay_together(scheduler: Stage) -> None:
    await scheduler.joins("n1", "n2")
    first, second = spec(), spec()
    await scheduler.harness.publish(AppChanged(spec=first))
    assert (await decided(scheduler, first.id)).nodes == ("n1",)
    await scheduler.harness.publish(AppChanged(spec=second))
    assert (await decided(scheduler, second.id)).nodes == ("n2",)
    more = newer(second, processes=web(3))
    await scheduler.harness.publish(AppChanged(spec=more))
    assert (await decided(scheduler, second.id, 2)).nodes == ("n2",)
    assert (await scheduler.told("n2", more, slots=3)).revision == 2


async def test_the_newest_generation_wins_however_they_arrive(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    first = spec()
    third = newer(newer(first, image="two"), image="three")
    await scheduler.harness.publish(AppChanged(spec=third))
    await scheduler.told("n1", third, slots=1)
    late = AppChanged(spec=first)
    await scheduler.harness.publish(late)
    await scheduler.harness.publish_again(late)
    await scheduler.harness.publish(AppChanged(spec=third))
    await scheduler.harness.settle()
    told = await scheduler.told("n1", third, slots=1)
    assert told.revision == 1
    assert [e.generation for e in await scheduler.harness.events(PlacementDecided)] == [3]


async def test_a_workload_without_an_image_has_nothing_to_place(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    app = spec(image=None)
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.harness.settle()
    first = newer(app, image="one")
    await scheduler.harness.publish(AppChanged(spec=first))
    await scheduler.told("n1", first, slots=1)
    assert [e.generation for e in await scheduler.harness.events(PlacementDecided)] == [2]


# --- blocked, and woken ------------------------------------------------------------------------------


@pytest.mark.promise("R19.3")
async def test_what_fits_nowhere_is_blocked_with_reasons_and_placed_when_a_node_joins(
    scheduler: Stage,
) -> None:
    await scheduler.joins("n1", memory_mb=100)
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    event = await blocked(scheduler, app.id)
    assert event.reasons == {"n1": "memory short by 28 MB"}
    assert event.deployment == app.deployment
    await scheduler.joins("n2")
    assert (await decided(scheduler, app.id)).nodes == ("n2",)
    await scheduler.told("n2", app, slots=1)


async def test_a_region_without_nodes_says_so(scheduler: Stage) -> None:
    app = spec(region="moon")
    await scheduler.harness.publish(AppChanged(spec=app))
    assert (await blocked(scheduler, app.id)).reasons == {"region moon": "no node is online"}
    await scheduler.joins("n1", region="moon")
    await decided(scheduler, app.id)


async def test_room_comes_back_when_the_last_instance_has_stopped_and_not_before(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=200)
    first, second = spec(), spec()
    await scheduler.harness.publish(AppChanged(spec=first))
    await scheduler.told("n1", first, slots=1)
    await scheduler.harness.publish(AppChanged(spec=second))
    assert (await blocked(scheduler, second.id)).reasons == {"n1": "memory short by 56 MB"}
    gone = newer(first, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=gone))
    await scheduler.told("n1", gone, slots=0)
    assert (await scheduler.node()).allocated.memory_mb == 128
    # A replaced instance leaves its slot to the next one.
    await scheduler.harness.publish(stopped(first, reason="replaced"))
    await scheduler.harness.settle()
    assert (await scheduler.node()).allocated.memory_mb == 128
    await scheduler.harness.publish(stopped(first))
    await scheduler.told("n1", second, slots=1)
    assert (await scheduler.node()).allocated.memory_mb == 128
    again = stopped(first)
    await scheduler.harness.publish(again)
    await scheduler.harness.publish_again(again)
    await scheduler.harness.settle()
    assert (await scheduler.node()).allocated.memory_mb == 128


async def test_the_same_reasons_are_not_told_twice(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=100)
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await blocked(scheduler, app.id)
    for name in ("n2", "n3"):
        await scheduler.joins(name, region="us")
    async with scheduler.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(text("update node set returned = returned + 1"))
    await Placing(scheduler.runtime, lambda: None).place()
    await scheduler.harness.settle()
    assert len(await scheduler.harness.events(PlacementBlocked)) == 1


# --- stopped, started, deleted -----------------------------------------------------------------------


async def test_stopped_started_and_deleted_are_orders_never_absent_keys(scheduler: Stage) -> None:
    await scheduler.joins("n1", "n2")
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    halted = newer(app, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=halted))
    assert (await scheduler.told("n1", halted, slots=0)).spec.state == "stopped"
    # n2 is less utilized now, and the workload still has its room on n1.
    begun = newer(halted, state="running")
    await scheduler.harness.publish(AppChanged(spec=begun))
    await scheduler.told("n1", begun, slots=1)
    assert (await scheduler.node("n1")).allocated.memory_mb == 128
    ended = newer(begun, state="deleted")
    await scheduler.harness.publish(AppDeleted(spec=ended))
    told = await scheduler.told("n1", ended, slots=0)
    assert (told.spec.state, told.revision) == ("deleted", 4)
    await scheduler.harness.publish(AppChanged(spec=begun))
    await scheduler.harness.settle()
    assert await scheduler.told("n1", ended, slots=0) == told


async def test_deleting_reaches_a_node_the_workload_was_only_stopped_on(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    halted = newer(app, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=halted), stopped(app))
    await scheduler.told("n1", halted, slots=0)
    ended = newer(halted, state="deleted")
    await scheduler.harness.publish(AppDeleted(spec=ended))
    assert (await scheduler.told("n1", ended, slots=0)).spec.state == "deleted"


async def test_a_larger_plan_without_room_leaves_the_running_release_alone(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=300)
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    before = await scheduler.told("n1", app, slots=1)
    large = newer(app, limits=sized(512))
    await scheduler.harness.publish(AppChanged(spec=large))
    assert (await blocked(scheduler, app.id, 2)).reasons == {"n1": "memory short by 212 MB"}
    assert await scheduler.desired("n1", app.id) == before
    await scheduler.joins("n2")
    await decided(scheduler, app.id, 2)
    await scheduler.told("n2", large, slots=1)
    await scheduler.told("n1", large, slots=0)


# --- many at once, and one that breaks ---------------------------------------------------------------


async def test_schedulers_that_place_at_once_never_promise_the_same_room_twice(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small batches, so that each plans one while it writes another; some break when they are written, and
    the nodes go on reporting."""
    for module in (due, place):
        monkeypatch.setattr(module, "BATCH", 4)
    write, writes = Placing._write, itertools.count()

    async def breaks(placing: Placing, *args: Any) -> None:
        await write(placing, *args)
        if next(writes) % 7 == 6 and len(args[2]) > 1:
            raise RuntimeError("on purpose")

    monkeypatch.setattr(Placing, "_write", breaks)
    harness = stage.harness
    for name in ("n1", "n2", "n3"):
        async with stage.runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(_NODE, {"name": name})
    replicas = [stage.runtime, *[await harness.store("scheduler") for _ in range(3)]]
    placing = [Placing(runtime, lambda: None) for runtime in replicas]

    async def wanted(runtime_index: int) -> None:
        runtime = replicas[runtime_index]
        adopting = Workloads(runtime, lambda: None)
        for _ in range(5):
            async with runtime.store.transaction(PLATFORM) as tx:
                await adopting.adopt([spec(processes=web(2)) for _ in range(8)], tx)
            await placing[runtime_index].place()

    async def reported() -> None:
        for i in range(40):
            async with stage.runtime.store.transaction(PLATFORM) as tx:
                await tx.execute(
                    text("update node set load = load + 1 where name = :name"), {"name": f"n{i % 3 + 1}"}
                )
            await asyncio.sleep(0.02)

    await asyncio.gather(reported(), *(wanted(i) for i in range(len(replicas))))
    assert next(writes) > 7
    while await placing[0].place():
        pass
    rows = await stage.runtime.store.read(
        "select n.name, n.memory_mb, n.reserved_memory_mb, n.free_memory_mb, sum(p.memory_mb)::bigint "
        "from node n join placement p on p.node = n.name group by n.name"
    )
    assert len(rows) == 3
    for _, capacity, reserved, free, placed in rows:
        assert reserved == placed
        assert free == capacity - reserved >= 0
    async with stage.runtime.store.transaction(PLATFORM) as tx:
        counts = await tx.execute(
            text(
                "select count(*) filter (where blocked is not null), "
                "count(*) filter (where due_at is not null), count(*) from workload"
            )
        )
        waiting_due_all = tuple(counts.one())
    # 3 nodes take 30 instances of 128 MB each; 160 workloads want two.
    assert sum(row[4] for row in rows) == 3 * 30 * 128
    assert waiting_due_all == (160 - 45, 0, 160)


_NODE = text(
    "insert into node (name, region, status, engine, instances, boot, sequence, reported_at, last_seen_at, "
    "cpu_millis, memory_mb, disk_mb, used_cpu_millis, used_memory_mb, used_disk_mb, load, "
    "free_cpu_millis, free_memory_mb, free_disk_mb) values (:name, 'eu', 'online', 'docker', 0, 'b', 1, "
    "now(), now(), 100000, 3900, 1000000, 0, 0, 0, 0, 100000, 3900, 1000000)"
)


async def test_the_database_itself_refuses_to_promise_what_is_not_there(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=200)
    with pytest.raises(IntegrityError) as refused:
        async with scheduler.runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(text("update node set free_memory_mb = free_memory_mb - 201"))
    assert isinstance(refused.value.orig, CheckViolation)


async def test_one_broken_workload_stops_nobody_and_is_tried_again(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    broken, sound = spec(), spec()
    async with scheduler.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(
            text(
                "insert into workload (id, organization, region, generation, spec, due_at) "
                "values (:id, :organization, 'eu', 1, '{\"name\": 7}', now())"
            ),
            {"id": broken.id, "organization": broken.organization},
        )
    await scheduler.harness.publish(AppChanged(spec=sound))
    await scheduler.told("n1", sound, slots=1)
    alert = await scheduler.harness.event(AlertRaised)
    assert (alert.severity, alert.details["workload"]) == ("critical", broken.id)
    mended = newer(broken)
    await scheduler.harness.publish(AppChanged(spec=mended))
    await scheduler.told("n1", mended, slots=1)


async def test_the_owners_snapshot_heals_what_no_event_told(stage: Stage, harness: Harness) -> None:
    lost, known, deleted = spec(), spec(), spec(state="deleted", generation=4)
    stage.snapshot = [lost, newer(known), deleted]
    await harness.start("scheduler")
    await harness.publish(
        AppChanged(spec=known), AppChanged(spec=newer(deleted, generation=3, state="running"))
    )
    await stage.joins("n1")
    await stage.told("n1", lost, slots=1)
    await stage.told("n1", newer(known), slots=1)
    await harness.settle()
    assert {e.workload for e in await harness.events(PlacementDecided)} == {lost.id, known.id}


async def test_an_organization_sees_its_own_workloads_only(scheduler: Stage) -> None:
    app, other = spec(), spec()
    await scheduler.harness.publish(AppChanged(spec=app), AppChanged(spec=other))
    await scheduler.harness.settle()

    async def seen(scope: str) -> set[str]:
        async with scheduler.runtime.store.transaction(scope) as tx:
            return {row[0] for row in await tx.execute(text("select id from workload"))}

    assert await seen(PLATFORM) == {app.id, other.id}
    assert await seen(app.organization) == {app.id}
    assert await seen(new_id("org")) == set()


async def test_what_was_due_when_the_process_died_is_placed_by_the_next(stage: Stage) -> None:
    app = spec()
    async with stage.runtime.store.transaction(PLATFORM) as tx:
        await Workloads(stage.runtime, lambda: None).adopt([app], tx)
    await stage.harness.start("scheduler")
    await stage.joins("n1")
    await stage.told("n1", app, slots=1)

    async def quiet() -> bool:
        async with stage.runtime.store.transaction(PLATFORM) as tx:
            rows = await tx.execute(
                text("select 1 from workload where due_at is not null or blocked is not null")
            )
            return rows.first() is None

    await eventually(quiet, what="nothing left to place")
