"""What an administrator decides about nodes, how they are drained and removed, what is told of them."""

from datetime import timedelta

import pytest
from contracts.errors import Conflict, NotFound
from contracts.events import AlertRaised, AppChanged
from contracts.events import NodeRemoved as Removal
from contracts.queries import AllNodes, NodeChanged, NodeLimits, NodeOf, NodeRemoved
from contracts.reports import NodeUsage
from runtime.store import PLATFORM
from scheduler.nodes import SAMPLE_SECONDS, pressed_in
from sqlalchemy import text

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import heartbeat, spec, stopped
from tests.scheduler.test_moving import started
from tests.scheduler.test_nodes import nodes_of, pass_time


async def change(stage: Stage, node: str = "n1", **choices: object) -> None:
    await stage.bus.ask(NodeChanged.model_validate({"node": node, **choices}))


async def blocked(stage: Stage, workload: str) -> dict[str, str]:
    async def look() -> dict[str, str] | None:
        async with stage.runtime.store.transaction(PLATFORM) as tx:
            found = await tx.execute(text("select blocked from workload where id = :id"), {"id": workload})
            return found.scalar_one_or_none()

    return await eventually(look, what="the reasons")


# --- what may be promised ------------------------------------------------------------------------------


@pytest.mark.promise("R19.5")
async def test_no_more_is_promised_than_the_administrator_allows(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=1024)
    await change(scheduler, limits=NodeLimits(memory_mb=200))
    node = await scheduler.node()
    assert (node.capacity.memory_mb, node.machine and node.machine.memory_mb) == (200, 1024)
    # A heartbeat, which knows nothing of it, leaves the limit alone.
    await scheduler.report(heartbeat(sequence=2, memory_mb=1024))
    assert (await scheduler.node()).capacity.memory_mb == 200
    first, second = spec(), spec()
    await scheduler.harness.publish(AppChanged(spec=first))
    await scheduler.told("n1", first, slots=1)
    await scheduler.harness.publish(AppChanged(spec=second))
    assert "memory short" in (await blocked(scheduler, second.id))["n1"]
    # Without the limit there is room, and what waited for it is placed.
    await change(scheduler, limits=NodeLimits())
    await scheduler.told("n1", second, slots=1)


async def test_more_may_be_promised_than_there_is_up_to_the_limit(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=1000)
    await change(scheduler, oversubscribe_memory=1.5, oversubscribe_cpu=4.0)
    node = await scheduler.node()
    assert node.machine is not None
    assert node.capacity.memory_mb == 1500
    assert node.capacity.cpu_millis == 4 * node.machine.cpu_millis
    await change(scheduler, limits=NodeLimits(memory_mb=1200))
    assert (await scheduler.node()).capacity.memory_mb == 1200


@pytest.mark.promise("R4.5")
async def test_a_disabled_node_gets_no_new_work_and_keeps_what_it_has(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    old, new = spec(), spec()
    await scheduler.harness.publish(AppChanged(spec=old))
    await scheduler.told("n1", old, slots=1)
    await change(scheduler, disabled=True, labels={"rack": "7"})
    await scheduler.harness.publish(AppChanged(spec=new))
    assert "disabled" in (await blocked(scheduler, new.id))["n1"]
    await scheduler.told("n1", old, slots=1)
    node = await scheduler.node()
    assert (node.disabled, node.labels, node.placements) == (True, {"rack": "7"}, 1)
    await change(scheduler, disabled=False)
    await scheduler.told("n1", new, slots=1)


# --- drained and removed -------------------------------------------------------------------------------


async def test_a_drained_node_ends_empty_and_can_be_removed(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2")
    with pytest.raises(Conflict, match="drain it first"):
        await scheduler.bus.ask(NodeRemoved(node="n1", force=False))
    await change(scheduler, draining=True)
    detail = await scheduler.bus.ask(NodeOf(node="n1"))
    assert (detail.node.drain_total, detail.node.draining) == (1, True)
    await scheduler.told("n2", app, slots=1)
    await scheduler.told("n1", app, slots=1)
    await scheduler.harness.publish(started(app, "n2"))
    await scheduler.told("n1", app, slots=0)
    await scheduler.harness.publish(stopped(app, reason="moved"))

    async def empty() -> bool:
        return (await scheduler.node()).placements == 0

    await eventually(empty, what="the drained node empty")
    await pass_time(scheduler, nodes_of(scheduler), 200)
    await scheduler.bus.ask(NodeRemoved(node="n1"))
    assert [node.name for node in (await scheduler.bus.ask(AllNodes())).nodes] == ["n2"]


async def test_a_node_that_never_joined_is_not_removed_while_it_is_heard(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    with pytest.raises(Conflict, match="did not join"):
        await scheduler.bus.ask(NodeRemoved(node="n1", force=True))
    with pytest.raises(NotFound):
        await scheduler.bus.ask(NodeRemoved(node="n7"))


async def test_by_force_its_work_starts_elsewhere(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    await pass_time(scheduler, nodes_of(scheduler), 200)
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeRemoved(node="n1", force=True))
    await scheduler.told("n2", app, slots=1)
    assert await scheduler.desired("n1", app.id) is None
    # Nobody waits for it any more, nor pays for what it did after its last word.
    await scheduler.harness.settle()
    (removal,) = await scheduler.harness.events(Removal)
    assert removal.node == "n1"
    assert removal.at - removal.last_seen_at >= timedelta(seconds=200)
    alerts = [(a.title, a.about, a.over) for a in await scheduler.harness.events(AlertRaised)]
    assert alerts == [
        ("Node n1 is offline", "node/n1/silence", False),
        ("Node n1 is removed", "node/n1/silence", True),
    ]


# --- health --------------------------------------------------------------------------------------------


def used(share: float) -> NodeUsage:
    return NodeUsage(cpu_millis=0, memory_mb=round(1000 * share), disk_mb=0, load=0.5)


def test_around_the_limit_nothing_is_told_twice() -> None:
    told: list[str] = []
    course = []
    for share in (0.89, 0.90, 0.88, 0.91, 0.86, 0.84, 0.89):
        told = pressed_in(heartbeat(memory_mb=1000, used=used(share)), told)
        course.append(bool(told))
    assert course == [False, True, True, True, True, False, False]


def test_a_processor_is_pressed_when_work_has_waited_for_it() -> None:
    told: list[str] = []
    course = []
    # The share of its CPU, and of its cores the processes that ran or waited in the last minute.
    for share, waiting in ((1.0, 0.4), (0.2, 1.5), (0.95, 1.1), (0.3, 1.2), (1.0, 0.7), (0.3, 0.8)):
        use = NodeUsage(cpu_millis=round(2000 * share), memory_mb=0, disk_mb=0, load=2 * waiting)
        told = pressed_in(heartbeat(cpu_millis=2000, used=use), told)
        course.append("CPU" in told)
    assert course == [False, False, True, True, True, False]


@pytest.mark.promise("R4.4")
async def test_a_pressed_resource_is_told_once_and_its_relief_too(scheduler: Stage) -> None:
    for sequence, share in enumerate((0.5, 0.93, 0.95, 0.88, 0.94, 0.7, 0.6), 1):
        await scheduler.report(heartbeat(sequence=sequence, memory_mb=1000, used=used(share)))

    async def both() -> list[AlertRaised] | None:
        found = [a for a in await scheduler.harness.events(AlertRaised) if "memory" in a.title]
        return found if len(found) == 2 else None

    alerts = await eventually(both, what="two alerts")
    assert [a.title for a in alerts] == ["Node n1 is at 93% of its memory", "Node n1 has memory again (70%)"]
    assert alerts[0].details == {"node": "n1", "region": "eu", "resource": "memory", "used": "93%"}
    assert [(a.about, a.over) for a in alerts] == [("node/n1/memory", False), ("node/n1/memory", True)]
    assert (await scheduler.node()).pressed == ()


async def test_a_node_that_comes_and_goes_is_told_of_once_and_trusted_later_each_time(stage: Stage) -> None:
    await stage.harness.start("scheduler")
    nodes = nodes_of(stage)
    waits = []
    for round in range(1, 6):
        await stage.report(heartbeat(sequence=round))
        await pass_time(stage, nodes, 200)
        rows = await stage.runtime.store.read("select status, outages from node where name = 'n1'")
        assert rows == [("offline", round)]
        await nodes.heard([heartbeat(sequence=round, boot=f"b{round}", at=stage.harness.clock.now())])
        rows = await stage.runtime.store.read(
            "select extract(epoch from trusted_at - last_seen_at)::int from node where name = 'n1'"
        )
        waits.append(rows[0][0])
        async with stage.runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(text("update node set boot = 'boot-1'"))
    assert waits == [None, 60, 120, 240, 480]

    async def told() -> bool:
        titles = [alert.title for alert in await stage.harness.events(AlertRaised)]
        return [title for title in titles if "online again" not in title] == [
            "Node n1 is offline",
            "Node n1 is offline",
            "Node n1 comes and goes",
        ]

    await eventually(told, what="three alerts")
    # It stays: from then on it is a node like the others.
    stage.harness.clock.advance(481)
    await nodes.look()
    assert (await stage.node()).trusted_at is None
    assert (await stage.harness.events(AlertRaised))[-1].title == "Node n1 comes and goes"
    stage.harness.clock.advance(3600)
    await nodes.look()
    event = await stage.harness.event(AlertRaised, lambda e: e.title == "Node n1 comes and goes no more")
    assert event.over


@pytest.mark.promise("R4.3")
async def test_a_node_in_detail_with_its_history(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=1000)
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    nodes = nodes_of(scheduler)
    # The one that runs has looked once, too: for a time of its own.
    scheduler.harness.clock.advance(SAMPLE_SECONDS)
    for sequence in range(2, 5):
        await scheduler.report(heartbeat(sequence=sequence, memory_mb=1000, used=used(sequence / 10)))
        await nodes.sample()
        await nodes.sample()
        scheduler.harness.clock.advance(SAMPLE_SECONDS)
    detail = await scheduler.bus.ask(NodeOf(node="n1"))
    assert [(p.workload, p.process, p.leaving) for p in detail.placements] == [(app.id, "web", False)]
    assert [sample.used.memory_mb for sample in detail.history][-3:] == [200, 300, 400]
    assert detail.history[-1].allocated.memory_mb == app.limits.memory_mb
    scheduler.harness.clock.advance(3 * 86_400)
    await nodes.thin()
    rows = await scheduler.runtime.store.read("select count(*) from node_sample")
    assert rows[0][0] <= 1


async def test_the_list_of_nodes_has_pages(scheduler: Stage) -> None:
    await scheduler.joins("n1", "n2", "n3")
    first = await scheduler.bus.ask(AllNodes(limit=2))
    assert ([n.name for n in first.nodes], first.next) == (["n1", "n2"], "n2")
    second = await scheduler.bus.ask(AllNodes(limit=2, after=first.next))
    assert ([n.name for n in second.nodes], second.next) == (["n3"], None)
