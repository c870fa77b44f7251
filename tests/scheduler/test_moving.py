"""Work on a node that cannot keep it: a lost one's runs elsewhere at once, a drained one's without a gap."""

import pytest
from contracts.events import AppChanged, InstanceStarted, PlacementBlocked, PlacementDecided
from contracts.ids import new_id
from contracts.workload import Process, WorkloadSpec
from runtime.store import PLATFORM
from sqlalchemy import text

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import heartbeat, newer, running, spec, stopped
from tests.scheduler.test_nodes import nodes_of, pass_time


def web(replicas: int) -> dict[str, Process]:
    return {"web": Process(replicas=replicas)}


async def alive(stage: Stage, name: str, *apps: WorkloadSpec) -> None:
    """The next report of a node, which runs these."""
    ((sequence, memory),) = await stage.runtime.store.read(
        "select sequence, machine_memory_mb from node where name = %s", (name,)
    )
    instances = tuple(running(app) for app in apps)
    await stage.report(heartbeat(name, sequence + 1, memory_mb=memory, instances=instances))


async def silence(stage: Stage, *names: str, others: tuple[str, ...] = ()) -> None:
    """100 seconds in which nothing is heard of these."""
    nodes = nodes_of(stage)
    await nodes.look()
    for step in range(10):
        stage.harness.clock.advance(10)
        if step % 5 == 4:
            for name in others:
                await alive(stage, name)
        await nodes.look()
    for name in names:
        assert (await stage.node(name)).status == "offline"


def started(of: WorkloadSpec, node: str, index: int = 0) -> InstanceStarted:
    return InstanceStarted.model_validate(
        running(of, index).model_dump(exclude={"healthy"}) | {"node": node, "instance": new_id("ins")}
    )


async def places(stage: Stage, app: WorkloadSpec) -> list[tuple[str, bool]]:
    rows = await stage.runtime.store.read(
        "select node, leaving is not null from placement where workload = %s order by node", (app.id,)
    )
    return [(node, leaving) for node, leaving in rows]


# --- lost --------------------------------------------------------------------------------------------


async def test_what_has_lost_its_node_runs_elsewhere_and_the_node_is_told_so_when_it_returns(
    scheduler: Stage,
) -> None:
    app = spec(processes=web(2))
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    before = await scheduler.told("n1", app, slots=2)
    await scheduler.joins("n2")
    await silence(scheduler, "n1", others=("n2",))
    await scheduler.told("n2", app, slots=2)
    event = await scheduler.harness.event(PlacementDecided, lambda e: e.nodes == ("n2",))
    assert (event.workload, event.generation, event.lost) == (app.id, app.generation, ("n1",))
    # What its agent reads first when it is back: nothing of this is its own any more.
    after = await scheduler.told("n1", app, slots=0)
    assert after.revision > before.revision
    assert (await scheduler.node("n1")).allocated.memory_mb == 256, "its copies may still be there"

    await alive(scheduler, "n1", app)
    assert (await scheduler.node("n1")).status == "online"
    await scheduler.harness.publish(stopped(app, reason="moved"), stopped(app, index=1, reason="moved"))

    async def given_back() -> bool:
        return (await scheduler.node("n1")).allocated.memory_mb == 0

    await eventually(given_back, what="the room of the old copies")
    assert await places(scheduler, app) == [("n2", False), ("n2", False)], "what has moved stays there"


async def test_what_finds_no_room_waits_says_so_and_goes_on_when_its_node_is_back(scheduler: Stage) -> None:
    app = spec()
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    before = await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2", memory_mb=100)
    await silence(scheduler, "n1", others=("n2",))
    event = await scheduler.harness.event(PlacementBlocked)
    assert event.reasons == {"n1": "offline", "n2": "memory short by 28 MB"}
    assert event.lost == ("n1",)
    await alive(scheduler, "n1", app)
    again = await scheduler.harness.event(PlacementDecided, lambda e: e.at > event.at)
    assert (again.nodes, again.lost) == (("n1",), ())
    assert await scheduler.desired("n1", app.id) == before


async def test_the_reserve_is_for_what_has_lost_its_node_alone(scheduler: Stage) -> None:
    app, other = spec(), spec()
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2", memory_mb=200)
    async with scheduler.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(text("update node set reserve = 0.5 where name = 'n2'"))
        await tx.execute(text("update node set disabled = true where name = 'n1'"))
    await scheduler.harness.publish(AppChanged(spec=other))
    event = await scheduler.harness.event(PlacementBlocked, lambda e: e.workload == other.id)
    assert event.reasons == {
        "n1": "disabled by its administrator",
        "n2": "memory short by 28 MB beside the reserve for failover",
    }
    await silence(scheduler, "n1", others=("n2",))
    await scheduler.told("n2", app, slots=1)


# --- drained -----------------------------------------------------------------------------------------


async def drain(stage: Stage, name: str) -> None:
    async with stage.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(
            text("update node set draining = true, evacuate = true where name = :name"), {"name": name}
        )


@pytest.mark.parametrize("word", ["event", "report"])
async def test_a_drained_node_serves_until_the_slot_runs_elsewhere_and_is_empty_then(
    scheduler: Stage, word: str
) -> None:
    app = spec()
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2")
    await drain(scheduler, "n1")
    await scheduler.told("n2", app, slots=1)
    assert len((await scheduler.told("n1", app, slots=1)).slots) == 1, "it still serves"
    later = newer(app, image="two")
    await scheduler.harness.publish(AppChanged(spec=later))
    await scheduler.told("n2", later, slots=1)
    await scheduler.told("n1", later, slots=1)
    if word == "event":
        await scheduler.harness.publish(started(later, "n2"))
    else:
        await alive(scheduler, "n2", later)
    await scheduler.told("n1", later, slots=0)
    assert await places(scheduler, app) == [("n1", True), ("n2", False)]
    await scheduler.harness.publish(stopped(later, reason="moved"))

    async def empty() -> bool:
        return await places(scheduler, app) == [("n2", False)]

    await eventually(empty, what="an empty node")
    assert (await scheduler.node("n1")).allocated.memory_mb == 0


async def test_whoever_takes_over_may_be_lost_before_it_has(scheduler: Stage) -> None:
    app = spec()
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2")
    await drain(scheduler, "n1")
    await scheduler.told("n2", app, slots=1)
    await scheduler.joins("n3")
    await silence(scheduler, "n2", others=("n1", "n3"))
    await scheduler.told("n3", app, slots=1)
    await scheduler.told("n1", app, slots=1)
    await scheduler.harness.publish(started(app, "n3"))
    await scheduler.told("n1", app, slots=0)
    assert await places(scheduler, app) == [("n1", True), ("n2", True), ("n3", False)]


async def test_a_node_that_comes_and_goes_is_given_nothing_for_a_while(scheduler: Stage) -> None:
    nodes = nodes_of(scheduler)
    await scheduler.joins("n1")
    for sequence in (2, 3):
        await pass_time(scheduler, nodes, 100)
        assert (await scheduler.node("n1")).status == "offline"
        await scheduler.report(heartbeat(sequence=sequence))
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    event = await scheduler.harness.event(PlacementBlocked)
    assert event.reasons == {"n1": "has been offline again and again, and rests"}
    for sequence in range(4, 8):
        scheduler.harness.clock.advance(20)
        await scheduler.report(heartbeat(sequence=sequence))
    await nodes.look()
    await scheduler.told("n1", app, slots=1)
