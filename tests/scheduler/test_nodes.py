"""Nodes as they report themselves: who is there, who is silent, what is free, what has left."""

import functools
from datetime import timedelta

import pytest
from contracts.events import AlertRaised, AppChanged, PlacementBlocked, PlacementDecided
from contracts.ids import new_id
from contracts.queries import RegionInfo, RegionsWithRoom
from contracts.reports import NodeUsage
from contracts.workload import Volume
from runtime.store import PLATFORM
from scheduler.departures import SETTLED, Departures
from scheduler.nodes import Nodes, newest
from scheduler.projection import Projection
from scheduler.relief import Relief
from sqlalchemy import text

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import heartbeat, newer, running, spec, stopped


def nodes_of(stage: Stage) -> Nodes:
    """A second scheduler's view, whose time passes when the test says so. What it changes, the one that runs
    is told of: by itself it looks every few seconds."""
    place, project = (functools.partial(stage.nudge, loop) for loop in ("place", "project"))
    return Nodes(stage.runtime, Departures(place), Relief(stage.runtime, project), 90, place)


async def pass_time(stage: Stage, nodes: Nodes, seconds: int) -> None:
    await nodes.look()
    for _ in range(seconds // 10):
        stage.harness.clock.advance(10)
        await nodes.look()


# --- which report counts -----------------------------------------------------------------------------


def test_of_one_nodes_reports_the_newest_is_kept() -> None:
    start = heartbeat().at
    old = heartbeat(sequence=9, boot="before", at=start - timedelta(minutes=5))
    second, third = heartbeat(sequence=2, at=start), heartbeat(sequence=3, at=start - timedelta(minutes=1))
    other = heartbeat("n2")
    assert newest([third, old, second, other]) == [third, other]
    assert newest([old, second]) == [second]


async def test_late_and_doubled_reports_change_nothing(stage: Stage) -> None:
    nodes = nodes_of(stage)
    now = stage.harness.clock.now()
    await nodes.heard([heartbeat(sequence=5, memory_mb=1000, at=now)])
    await nodes.heard([heartbeat(sequence=4, memory_mb=1)])
    await nodes.heard([heartbeat(sequence=5, memory_mb=2)])
    await nodes.heard([heartbeat(sequence=900, boot="older", at=now - timedelta(minutes=1), memory_mb=3)])
    assert await memory(stage) == (1000, 1000)
    await nodes.heard([heartbeat(sequence=1, boot="newer", at=now + timedelta(seconds=5), memory_mb=700)])
    assert await memory(stage) == (700, 700)


async def memory(stage: Stage, name: str = "n1") -> tuple[int, int]:
    rows = await stage.runtime.store.read(
        "select memory_mb, free_memory_mb from node where name = %s", (name,)
    )
    return rows[0][0], rows[0][1]


async def test_a_report_the_database_refuses_does_not_silence_the_others(stage: Stage) -> None:
    await nodes_of(stage).heard([heartbeat("n2", sequence=2**70), heartbeat("n1"), heartbeat("n3")])
    rows = await stage.runtime.store.read("select name from node order by name")
    assert [row[0] for row in rows] == ["n1", "n3"]


async def test_a_node_speaks_for_itself_only(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    forged = heartbeat("n1", sequence=50, memory_mb=1)
    await scheduler.harness.client.publish("node.heartbeat.n2", forged.model_dump_json().encode())
    await scheduler.report(heartbeat("n2"))
    assert await memory(scheduler) == (1024, 1024)


async def test_the_administrator_sees_capacity_promises_and_use(scheduler: Stage) -> None:
    app = spec()
    used = NodeUsage(cpu_millis=300, memory_mb=400, disk_mb=5000, load=0.75)
    await scheduler.report(heartbeat(used=used, instances=(running(app), running(spec()))))
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    node = await scheduler.node("n1")
    assert (node.region, node.status, node.engine, node.instances) == ("eu", "online", "docker 20.10", 2)
    assert node.capacity.memory_mb == 1024
    assert node.allocated.memory_mb == 128
    assert node.used == used
    assert node.last_seen_at is not None


# --- silence -----------------------------------------------------------------------------------------


@pytest.mark.promise("R4.2", "R19.4")
async def test_a_silent_node_is_offline_after_90_seconds_and_takes_nothing_until_it_is_back(
    scheduler: Stage,
) -> None:
    nodes = nodes_of(scheduler)
    await scheduler.joins("n1")
    await pass_time(scheduler, nodes, 80)
    assert (await scheduler.node("n1")).status == "online"
    await pass_time(scheduler, nodes, 20)
    assert (await scheduler.node("n1")).status == "offline"
    await pass_time(scheduler, nodes, 100)
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    event = await scheduler.harness.event(PlacementBlocked)
    assert event.reasons == {"n1": "offline", "region eu": "no node is online"}

    await scheduler.report(heartbeat(sequence=2))
    await scheduler.harness.event(PlacementDecided, lambda e: e.workload == app.id)
    await scheduler.harness.settle()
    alerts = [(a.severity, a.title, a.details["node"]) for a in await scheduler.harness.events(AlertRaised)]
    assert alerts == [
        ("critical", "Node n1 is offline", "n1"),
        ("warning", "Node n1 is online again", "n1"),
    ]


async def test_a_node_whose_engine_does_not_answer_is_told_of_and_takes_nothing_until_it_does(
    scheduler: Stage,
) -> None:
    await scheduler.joins("n1")
    stays = spec()
    await scheduler.harness.publish(AppChanged(spec=stays))
    await scheduler.harness.event(PlacementDecided, lambda e: e.workload == stays.id)
    await scheduler.report(heartbeat(sequence=2, engine_away=True))
    await scheduler.report(heartbeat(sequence=3, engine_away=True))
    found = await scheduler.node("n1")
    assert (found.status, found.engine_away) == ("online", True)
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    event = await scheduler.harness.event(PlacementBlocked)
    assert event.reasons == {"n1": "its container engine does not answer"}
    assert [region.has_room for region in (await scheduler.bus.ask(RegionsWithRoom())).regions] == [False]
    # What is there may well go on: it is nobody else's.
    assert len((await scheduler.told("n1", stays, slots=1)).slots) == 1

    await scheduler.report(heartbeat(sequence=4))
    await scheduler.harness.event(PlacementDecided, lambda e: e.workload == app.id)
    await scheduler.harness.settle()
    alerts = [(a.severity, a.title, a.over) for a in await scheduler.harness.events(AlertRaised)]
    assert alerts == [
        ("critical", "The container engine of node n1 does not answer", False),
        ("warning", "The container engine of node n1 answers again", True),
    ]


async def test_what_has_its_volumes_on_a_node_that_is_offline_stays_there(scheduler: Stage) -> None:
    nodes = nodes_of(scheduler)
    await scheduler.joins("n1")
    app = spec(volumes=(Volume(id=new_id("vol"), name="data", path="/data", size_mb=64),))
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    await pass_time(scheduler, nodes, 100)
    event = await scheduler.harness.event(PlacementBlocked)
    assert event.reasons == {"n1": "offline, and the volumes are there"}
    await scheduler.joins("n2")
    later = newer(app, image="two")
    await scheduler.harness.publish(AppChanged(spec=later))
    await scheduler.told("n1", later, slots=1)
    assert await scheduler.desired("n2", app.id) is None


async def test_who_did_not_listen_himself_does_not_call_it_silence(stage: Stage) -> None:
    nodes = nodes_of(stage)
    await nodes.heard([heartbeat()])
    await nodes.look()
    stage.harness.clock.advance(1000)
    await pass_time(stage, nodes, 80)
    assert await status(stage) == "online"
    await pass_time(stage, nodes, 10)
    assert await status(stage) == "offline"


async def status(stage: Stage) -> str:
    rows = await stage.runtime.store.read("select status from node where name = 'n1'")
    return str(rows[0][0])


async def test_an_agent_whose_clock_was_set_back_is_heard_once_the_old_one_is_silent(stage: Stage) -> None:
    nodes = nodes_of(stage)
    now = stage.harness.clock.now()
    await nodes.heard([heartbeat(sequence=70, at=now)])
    await pass_time(stage, nodes, 100)
    assert await status(stage) == "offline"
    await nodes.heard([heartbeat(sequence=1, boot="boot-2", at=now - timedelta(days=400))])
    assert await status(stage) == "online"


# --- capacity ----------------------------------------------------------------------------------------


async def test_a_machine_that_shrinks_below_its_promises_takes_no_more_and_recovers(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    apps = [spec() for _ in range(4)]
    await scheduler.harness.publish(*(AppChanged(spec=app) for app in apps))
    for app in apps:
        await scheduler.told("n1", app, slots=1)
    await scheduler.report(heartbeat(sequence=2, memory_mb=300))
    assert await memory(scheduler) == (300, 0)
    gone = [newer(app, state="deleted") for app in apps[:3]]
    await scheduler.harness.publish(*(AppChanged(spec=app) for app in gone))
    for app in gone:
        await scheduler.told("n1", app, slots=0)
    await scheduler.harness.publish(*(stopped(app, reason="deleted") for app in gone))

    async def free() -> bool:
        return await memory(scheduler) == (300, 300 - 128)

    await eventually(free, what="the room of three that left")


@pytest.mark.promise("R5.4")
async def test_a_region_has_room_while_one_of_its_nodes_takes_the_smallest_plan(stage: Stage) -> None:
    await stage.harness.start("scheduler", base_domains={"us": "us.example.com"})
    await stage.joins("n1", region="eu", memory_mb=100)
    await stage.joins("n2", region="us", memory_mb=100)
    await stage.joins("n3", region="us", memory_mb=128)
    answer = await stage.bus.ask(RegionsWithRoom())
    assert answer.regions == (
        RegionInfo(name="eu", base_domain="localhost", has_room=False),
        RegionInfo(name="us", base_domain="us.example.com", has_room=True),
    )
    app = spec(region="us")
    await stage.harness.publish(AppChanged(spec=app))
    await stage.told("n3", app, slots=1)
    assert [region.has_room for region in (await stage.bus.ask(RegionsWithRoom())).regions] == [False, False]


# --- what has left -----------------------------------------------------------------------------------


async def test_a_report_gives_room_back_where_the_event_was_lost_but_not_too_early(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    gone = newer(app, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=gone))
    await scheduler.told("n1", gone, slots=0)
    await scheduler.report(heartbeat(sequence=2))
    assert await reserved(scheduler) == 128, "the node may not have read it yet"
    scheduler.harness.clock.advance(SETTLED.total_seconds())
    await scheduler.report(heartbeat(sequence=3))
    assert await reserved(scheduler) == 128, "it may still drain"
    scheduler.harness.clock.advance(app.grace_seconds)
    await scheduler.report(heartbeat(sequence=4, instances=(running(app),)))
    assert await reserved(scheduler) == 128, "it is still there"
    await scheduler.report(heartbeat(sequence=5))
    assert await reserved(scheduler) == 0


async def reserved(stage: Stage) -> int:
    rows = await stage.runtime.store.read("select reserved_memory_mb from node where name = 'n1'")
    return int(rows[0][0])


async def test_a_key_is_deleted_only_after_the_node_reports_nothing_of_a_deleted_workload(
    scheduler: Stage,
) -> None:
    await scheduler.joins("n1")
    halted, deleted = spec(), spec()
    await scheduler.harness.publish(AppChanged(spec=halted), AppChanged(spec=deleted))
    await scheduler.told("n1", halted, slots=1)
    await scheduler.told("n1", deleted, slots=1)
    halted, deleted = newer(halted, state="stopped"), newer(deleted, state="deleted")
    await scheduler.harness.publish(AppChanged(spec=halted), AppChanged(spec=deleted))
    await scheduler.told("n1", halted, slots=0)
    await scheduler.told("n1", deleted, slots=0)
    forget = Projection(scheduler.runtime).forget
    scheduler.harness.clock.advance(SETTLED.total_seconds() + 1)
    await scheduler.report(heartbeat(sequence=2, instances=(running(deleted),)))
    await forget()
    assert await scheduler.desired("n1", deleted.id) is not None
    await scheduler.report(heartbeat(sequence=3))
    await forget()
    assert await scheduler.desired("n1", deleted.id) is not None, "its place is not given back yet"
    scheduler.harness.clock.advance(deleted.grace_seconds)
    await scheduler.report(heartbeat(sequence=4))
    await forget()
    assert await scheduler.desired("n1", deleted.id) is None
    assert await scheduler.desired("n1", halted.id) is not None
    async with scheduler.runtime.store.transaction(PLATFORM) as tx:
        told = await tx.execute(text("select workload from projection"))
        assert [row[0] for row in told] == [halted.id]
