"""Data of workloads, as the scheduler has it copied, moved and gone on with: the nodes are played."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest
from contracts.copies import CopyOrder
from contracts.errors import Conflict
from contracts.events import (
    AlertRaised,
    AppChanged,
    AppDeleted,
    PlacementBlocked,
    PlacementDecided,
    VolumesMoved,
)
from contracts.ids import new_id
from contracts.queries import CopiesOf, NodeChanged, NodeOf, NodeRemoved
from contracts.reports import CopiesHeld, CopyState, VolumeUse
from contracts.workload import NodeWorkload, Process, Volume, WorkloadSpec
from psycopg import AsyncConnection
from runtime.service import Loop
from runtime.store import PLATFORM
from scheduler import copies
from scheduler.departures import Departures
from scheduler.facts import Facts, facts_of
from scheduler.fleet import Node
from scheduler.held import Held
from scheduler.moves import Moves
from scheduler.roster import Roster

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import heartbeat, newer, running, spec, stopped
from tests.scheduler.test_moving import alive, places, silence, started

VOLUME = Volume(id=new_id("vol"), name="data", path="/data", size_mb=512, encrypted=True)


def stateful(**changes: object) -> WorkloadSpec:
    return spec(volumes=(VOLUME,), **changes)


async def order(stage: Stage, node: str, app: WorkloadSpec, **like: object) -> CopyOrder:
    async def look() -> CopyOrder | None:
        entry = await stage.bus.bucket("copies").get(f"{node}.{app.id}")
        if entry is None:
            return None
        found = CopyOrder.model_validate_json(entry.value)
        return found if all(getattr(found, name) == value for name, value in like.items()) else None

    return await eventually(look, what=f"an order {like} for {node}")


async def no_orders(stage: Stage) -> None:
    async def look() -> bool:
        return not await stage.bus.bucket("copies").entries()

    await eventually(look, what="no order")


async def says(stage: Stage, node: str, app: WorkloadSpec, told: CopyOrder, **more: object) -> None:
    """What a node says of a copy, again and again as nodes do, until it is known."""
    fields: dict[str, object] = {"phase": "complete", "volumes": tuple(v.id for v in app.volumes)}
    if "phase" not in more:
        fields |= {"taken_at": stage.harness.clock.now(), "digest": "0f"}
    report = CopyState.model_validate(
        {"node": node, "copy_id": told.id, "workload": app.id, **fields, **more}
    )

    async def known() -> bool:
        await stage.bus.report(report)
        if report.phase == "dropped":
            rows = await stage.runtime.store.read(
                "select 1 from copy where workload = %s and node = %s", (app.id, node)
            )
            return not rows
        return not await stage.runtime.store.read("select 1 from transfer where id = %s", (told.id,))

    await eventually(known, every=0.1, what=f"{report.phase} of {node}")


async def runs_on_n1(stage: Stage, **changes: object) -> WorkloadSpec:
    app = stateful(**changes)
    await stage.joins("n1")
    await stage.harness.publish(AppChanged(spec=app))
    await stage.told("n1", app, slots=1)
    await stage.harness.publish(started(app, "n1"))
    return app


async def copied_to_n2(stage: Stage, **changes: object) -> WorkloadSpec:
    app = await runs_on_n1(stage, copy_minutes=10, **changes)
    await stage.joins("n2")
    told = await order(stage, "n2", app)
    await says(stage, "n2", app, told)
    await no_orders(stage)
    return app


async def told_when(stage: Stage, node: str, app: WorkloadSpec, **like: object) -> NodeWorkload:
    async def look() -> NodeWorkload | None:
        found = await stage.desired(node, app.id)
        fits = found and all(getattr(found, name) == value for name, value in like.items())
        return found if fits else None

    return await eventually(look, what=f"{like} told to {node}")


async def test_a_plan_with_copies_has_one_on_another_node_and_refreshes_it(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler, copy_minutes=10)
    assert (await scheduler.bus.ask(CopiesOf(workload=app.id))).home == "n1"
    await scheduler.joins("n2")
    give, take = await order(scheduler, "n1", app), await order(scheduler, "n2", app)
    assert (give.role, give.peer, take.role, take.peer) == ("give", "n2", "take", "n1")
    assert give.id == take.id
    assert give.secret == take.secret
    assert len(give.secret) > 30
    assert (give.mode, take.mode) == ("frozen", "frozen")
    assert (await scheduler.node("n2")).allocated.disk_mb == 512, "its room is kept"
    await scheduler.bus.report(
        CopyState(
            node="n2", copy_id=take.id, workload=app.id, phase="copying", done_mb=128, total_mb=512, sent_mb=9
        )
    )

    async def progress() -> bool:
        known = await scheduler.bus.ask(CopiesOf(workload=app.id))
        return known.copying is not None and known.copying.done_mb == 128

    await eventually(progress, what="the progress")
    # Who is not ordered to may say what he likes.
    await scheduler.bus.report(
        CopyState(
            node="n1",
            copy_id=take.id,
            workload=app.id,
            phase="complete",
            taken_at=scheduler.harness.clock.now(),
            digest="0f",
        )
    )
    await says(scheduler, "n2", app, take)
    known = await scheduler.bus.ask(CopiesOf(workload=app.id))
    assert (known.home, known.on, known.copying) == ("n1", "n2", None)
    await no_orders(scheduler)
    scheduler.harness.clock.advance(601)
    await alive(scheduler, "n1", app)
    await alive(scheduler, "n2")
    again = await order(scheduler, "n2", app)
    assert again.id != take.id
    assert again.secret != take.secret
    await says(scheduler, "n2", app, again)

    # Deleted, nobody keeps a copy of it, and its room comes back.
    gone = newer(app, state="deleted")
    await scheduler.harness.publish(AppDeleted(spec=gone))
    drop = await order(scheduler, "n2", app, role="drop")
    await says(scheduler, "n2", app, drop, phase="dropped")
    await no_orders(scheduler)
    assert (await scheduler.node("n2")).allocated.disk_mb == 0


async def test_a_drained_node_gives_its_data_away_and_only_then_its_instances(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler)
    before = await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    first = await order(scheduler, "n2", app, mode="frozen")
    assert (await scheduler.node("n2")).allocated.memory_mb == 128, "its room is kept while its data comes"
    assert len((await scheduler.told("n1", app, slots=1)).slots) == 1, "it serves meanwhile"
    (copying,) = (await scheduler.bus.ask(NodeOf(node="n1"))).copying
    assert (copying.workload, copying.why, copying.target, copying.last) == (app.id, "move", "n2", False)
    await says(scheduler, "n2", app, first)
    last = await order(scheduler, "n2", app, mode="final")
    assert last.id != first.id
    ending = await scheduler.told("n1", app, slots=0)
    assert (ending.home, ending.revision > before.revision) == (0, True)
    # A release that comes now waits for the end of the move; the old place is no place any more.
    later = newer(app, image="two")
    await scheduler.harness.publish(AppChanged(spec=later), stopped(app, reason="moved"))
    await scheduler.harness.settle()
    assert await scheduler.desired("n2", app.id) is None
    # A copy of before is not the last one.
    await scheduler.bus.report(
        CopyState(
            node="n2",
            copy_id=first.id,
            workload=app.id,
            phase="complete",
            taken_at=scheduler.harness.clock.now(),
            digest="0f",
            volumes=(VOLUME.id,),
        )
    )
    await says(scheduler, "n2", app, last)
    there = await scheduler.told("n2", later, slots=1)
    assert (there.home, there.proven) == (1, 0)
    assert there.claim is not None
    assert there.claim.id == last.id
    assert there.volume_keys is not None, "its key is another node's"
    event = await scheduler.harness.event(VolumesMoved)
    assert (event.source, event.target, event.lost_until) == ("n1", "n2", None)
    await no_orders(scheduler)
    assert (await scheduler.node("n2")).allocated.memory_mb == 128
    assert (await scheduler.desired("n1", app.id)).proven == 0  # type: ignore[union-attr]
    # When it runs there, what is left here is old.
    await scheduler.harness.publish(started(later, "n2"))
    old = await told_when(scheduler, "n1", app, proven=1)
    assert (old.slots, old.home) == ((), 1)
    assert await places(scheduler, app) == [("n2", False)]
    assert (await scheduler.node("n1")).allocated.memory_mb == 0


async def test_a_move_that_does_not_get_on_ends_where_it_began(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler)
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode="frozen"))
    await order(scheduler, "n2", app, mode="final")
    await scheduler.told("n1", app, slots=0)
    await scheduler.harness.publish(stopped(app, reason="moved"))

    async def left() -> bool:
        has = (await scheduler.node("n1")).allocated
        return (has.memory_mb, has.disk_mb) == (0, 512)

    await eventually(left, what="the end of its instances, but not of its data")
    scheduler.harness.clock.advance(181)
    await alive(scheduler, "n1")
    back = await scheduler.told("n1", app, slots=1)
    assert back.home == 0
    assert await places(scheduler, app) == [("n1", False)]
    assert (await scheduler.node("n1")).allocated.memory_mb == 128
    assert (await scheduler.node("n1")).allocated.disk_mb == 256 + 512
    drop = await order(scheduler, "n2", app, role="drop")
    await says(scheduler, "n2", app, drop, phase="dropped")
    assert (await scheduler.node("n2")).allocated.disk_mb == 0
    # What has come back is not taken out by mistake.
    with pytest.raises(Exception, match="still has"):
        await scheduler.bus.ask(NodeRemoved(node="n1"))


async def test_what_has_a_copy_goes_on_from_it_when_its_node_is_lost(scheduler: Stage) -> None:
    app = await copied_to_n2(scheduler)
    copied_at = (await scheduler.bus.ask(CopiesOf(workload=app.id))).newest
    await silence(scheduler, "n1", others=("n2",))
    there = await scheduler.told("n2", app, slots=1)
    assert (there.home, there.proven) == (1, 0)
    assert there.claim is not None
    assert there.claim.taken_at == copied_at
    moved = await scheduler.harness.event(VolumesMoved)
    assert (moved.source, moved.target, moved.taken_at) == ("n1", "n2", copied_at)
    assert moved.lost_until is not None
    assert moved.lost_until - moved.taken_at > timedelta(seconds=90)
    decided = await scheduler.harness.event(PlacementDecided, lambda e: e.nodes == ("n2",))
    assert decided.lost == ("n1",)
    # The plan's disk and the volume: the copy is the volume now.
    assert (await scheduler.node("n2")).allocated.disk_mb == 256 + 512
    # The lost node reads first that nothing of it is its own; and then that its data is old.
    await scheduler.told("n1", app, slots=0)
    await scheduler.harness.publish(started(app, "n2"))
    # The event finds the row in the hands of the loop at times; then a heartbeat says the same.
    scheduler.harness.clock.advance(31)
    await alive(scheduler, "n2", app)
    assert (await told_when(scheduler, "n1", app, proven=1)).slots == ()
    await alive(scheduler, "n1", app)
    await scheduler.harness.publish(stopped(app, reason="moved"))

    async def settled() -> bool:
        return await places(scheduler, app) == [("n2", False)]

    await eventually(settled, what="one place")
    # It is where the next copy goes, after a while in which there was nowhere to.
    scheduler.harness.clock.advance(121)
    await alive(scheduler, "n1")
    await alive(scheduler, "n2", app)
    assert (await order(scheduler, "n1", app)).peer == "n2"


async def test_a_home_is_proven_by_a_report_where_nobody_could_attend_to_its_event(scheduler: Stage) -> None:
    app = await copied_to_n2(scheduler)
    await silence(scheduler, "n1", others=("n2",))
    await scheduler.told("n2", app, slots=1)
    async with scheduler.runtime.store.transaction(PLATFORM) as tx:
        lock = "select 1 from workload where id = %s for no key update"
        await (await tx.connection()).execute(lock, (app.id,))
        await scheduler.harness.publish(started(app, "n2"))
        await scheduler.harness.settle()
    assert (await told_when(scheduler, "n1", app)).proven == 0
    scheduler.harness.clock.advance(31)
    # Its engine could not say what it uses.
    await alive(scheduler, "n2", app)
    await told_when(scheduler, "n1", app, proven=1)


async def test_without_a_copy_it_waits_for_its_node(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler)
    await scheduler.joins("n2")
    await silence(scheduler, "n1", others=("n2",))
    await scheduler.harness.settle()
    assert await scheduler.desired("n2", app.id) is None
    assert len((await scheduler.told("n1", app, slots=1)).slots) == 1


def says_it_has(stage: Stage, node: str, *apps: WorkloadSpec, **page: object) -> CopiesHeld:
    now = stage.harness.clock.now()
    return CopiesHeld.model_validate(
        {"node": node, "copies": [{"workload": app.id, "taken_at": now} for app in apps], **page}
    )


async def newest_on(stage: Stage, app: WorkloadSpec) -> str | None:
    return (await stage.bus.ask(CopiesOf(workload=app.id))).on


async def test_a_copy_that_its_node_has_no_more_is_made_again(scheduler: Stage) -> None:
    app = await copied_to_n2(scheduler)
    held = Held(scheduler.runtime)
    # The word may be older than the copy.
    await held.heard([says_it_has(scheduler, "n2")])
    scheduler.harness.clock.advance(61)
    await alive(scheduler, "n1", app)
    await alive(scheduler, "n2")
    # A page says nothing of what is not on it, nor does another node.
    before = f"app_{'0' * 26}"
    await held.heard([says_it_has(scheduler, "n2", after=app.id), says_it_has(scheduler, "n2", until=before)])
    await held.heard([says_it_has(scheduler, "n1"), says_it_has(scheduler, "n2", app)])
    assert await newest_on(scheduler, app) == "n2"

    await scheduler.bus.report(says_it_has(scheduler, "n2"))
    alert = await scheduler.harness.event(AlertRaised, lambda e: e.title.startswith("Copies"))
    assert alert.title == "Copies of volumes are gone from n2, and are made again"
    assert (alert.details["copies"], alert.details["workloads"]) == ("1", app.id)
    again = await order(scheduler, "n2", app)
    assert again.role == "take"
    assert await newest_on(scheduler, app) is None
    assert (await scheduler.node("n2")).allocated.disk_mb == 512, "its room is kept"
    await held.heard([says_it_has(scheduler, "n2")])
    await says(scheduler, "n2", app, again)
    assert await newest_on(scheduler, app) == "n2"
    alerts = await scheduler.harness.events(AlertRaised)
    assert len([one for one in alerts if one.title == alert.title]) == 1, "it is told once"


async def test_nothing_goes_on_from_a_copy_that_is_gone_but_from_one_that_is_there_again(
    scheduler: Stage,
) -> None:
    app = await copied_to_n2(scheduler)
    held = Held(scheduler.runtime)
    scheduler.harness.clock.advance(61)
    await held.heard([says_it_has(scheduler, "n2")])
    await silence(scheduler, "n1", others=("n2",))
    await scheduler.harness.settle()
    assert await scheduler.desired("n2", app.id) is None
    await scheduler.bus.report(says_it_has(scheduler, "n2", app))
    assert (await scheduler.told("n2", app, slots=1)).home == 1


async def test_the_more_there_is_to_read_the_longer_a_move_may_stand_still(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler)
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode="frozen"))
    last = await order(scheduler, "n2", app, mode="final")
    fields = {"node": "n2", "copy_id": last.id, "workload": app.id, "phase": "copying"}
    await scheduler.bus.report(CopyState.model_validate({**fields, "total_mb": 100_000}))

    async def total() -> bool:
        known = (await scheduler.bus.ask(CopiesOf(workload=app.id))).copying
        return known is not None and known.total_mb == 100_000

    await eventually(total, what="how much it is")
    await scheduler.harness.publish(stopped(app, reason="moved"))
    for seconds, under_way in ((1900, True), (300, False)):
        scheduler.harness.clock.advance(seconds)
        await alive(scheduler, "n1")
        await alive(scheduler, "n2")
        [copies] = [one for one in scheduler.harness.hosts["scheduler"].service.loops if one.name == "copies"]
        await copies.work()
        assert ((await scheduler.bus.ask(CopiesOf(workload=app.id))).copying is not None) == under_way


async def test_what_a_home_has_had_is_not_to_be_made_there_again(scheduler: Stage) -> None:
    app = await copied_to_n2(scheduler)
    said = heartbeat("n1", sequence=90, at=scheduler.harness.clock.now(), instances=(running(app),))
    volumes = tuple(
        VolumeUse(volume=volume, workload=app.id, used_mb=1, size_mb=512)
        for volume in (new_id("vol"), VOLUME.id)
    )
    await scheduler.report(said.model_copy(update={"volumes": volumes}))
    scheduler.nudge("volumes made")
    told = await told_when(scheduler, "n1", app, made=(VOLUME.id,))
    scheduler.nudge("volumes made")
    await scheduler.harness.settle()
    assert (await told_when(scheduler, "n1", app)).revision == told.revision, "it is told once"
    await silence(scheduler, "n1", others=("n2",))
    assert (await scheduler.told("n2", app, slots=1)).made == (VOLUME.id,), "what is in its copy"


async def transfers(stage: Stage) -> list[tuple[str, str]]:
    return [tuple(row) for row in await stage.runtime.store.read("select workload, why from transfer")]


def loop(stage: Stage, name: str) -> Loop:
    [found] = [one for one in stage.harness.hosts["scheduler"].service.loops if one.name == name]
    return found


async def look_after(stage: Stage) -> None:
    """One look at the data of workloads, from its begin to its end."""
    await loop(stage, "copies").work()


async def test_a_copy_of_volumes_that_are_taken_away_is_not_waited_for(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler, copy_minutes=10)
    await scheduler.joins("n2")
    await order(scheduler, "n2", app)
    bare = newer(app, volumes=())
    await scheduler.harness.publish(AppChanged(spec=bare))
    await scheduler.told("n1", bare, slots=1)
    drop = await order(scheduler, "n2", app, role="drop")
    await says(scheduler, "n2", app, drop, phase="dropped")
    assert await transfers(scheduler) == []
    assert (await scheduler.node("n2")).allocated.disk_mb == 0


async def test_a_copy_that_got_on_before_it_was_judged_goes_on(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler, copy_minutes=10)
    await scheduler.joins("n2")
    await order(scheduler, "n2", app)
    moves = Moves(scheduler.runtime, lambda: None, lambda: None)
    for undone in (False, True):
        # As whoever found it hopeless a moment ago.
        async with scheduler.runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            if undone:
                await connection.execute("update node set status = 'offline' where name = 'n2'")
            facts = await facts_of(connection, app.id)
            assert facts is not None
            await moves.judge(tx, connection, facts)
            rows = await (await connection.execute("select 1 from transfer")).fetchall()
        assert bool(rows) == (not undone)


async def next_copy(stage: Stage, app: WorkloadSpec) -> tuple[datetime | None, int]:
    """When there may be another, and how many in a row have failed."""
    async with stage.runtime.store.transaction(PLATFORM) as tx:
        rows = await (await tx.connection()).execute(
            "select copy_after, copy_failures from workload where id = %s", (app.id,)
        )
        ((after, failures),) = await rows.fetchall()
    return after, failures


async def gets_stuck(stage: Stage, app: WorkloadSpec) -> None:
    """Its node says for 11 minutes that it does not get on."""
    for _ in range(2):
        ((copy, target),) = await stage.runtime.store.read(
            "select id, target from transfer where workload = %s", (app.id,)
        )
        words = "n1: its volumes could not be read"
        await Moves(stage.runtime, lambda: None, lambda: None).heard(
            [CopyState(node=target, copy_id=copy, workload=app.id, phase="copying", words=words)]
        )
        stage.harness.clock.advance(330)
        await alive(stage, "n1", app)
        await alive(stage, "n2")


async def test_copies_that_do_not_get_on_leave_their_turn_to_others(scheduler: Stage) -> None:
    await scheduler.joins("n1", memory_mb=10_000)
    apps = [stateful(copy_minutes=10) for _ in range(3)]
    for app in apps:
        await scheduler.harness.publish(AppChanged(spec=app))
        await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2", memory_mb=10_000)

    async def two() -> bool:
        return len(await transfers(scheduler)) == 2

    await eventually(two, what="two copies at a time")
    first = {workload for workload, _ in await transfers(scheduler)}
    for app in apps:
        if app.id in first:
            await gets_stuck(scheduler, app)
    await look_after(scheduler)
    [third] = [app for app in apps if app.id not in first]
    told = await order(scheduler, "n2", third)
    await says(scheduler, "n2", third, told)


async def test_a_copy_that_fails_again_and_again_is_tried_later_and_later(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler, copy_minutes=10)
    await scheduler.joins("n2")
    for times in (1, 2, 3):
        await order(scheduler, "n2", app, role="take")
        await gets_stuck(scheduler, app)
        await look_after(scheduler)
        after, failures = await next_copy(scheduler, app)
        assert after is not None
        pause = after - scheduler.harness.clock.now()
        assert (failures, pause > timedelta(minutes=2**times - 1)) == (times, True)
        scheduler.harness.clock.advance(pause.total_seconds() + 1)
        await alive(scheduler, "n1", app)
        await alive(scheduler, "n2")
    await says(scheduler, "n2", app, await order(scheduler, "n2", app, role="take"))
    assert await next_copy(scheduler, app) == (None, 0), "and what has been made is over with"


async def test_a_copy_for_which_an_app_would_stand_still_too_long_is_given_up_at_once_and_told_of_once(
    scheduler: Stage,
) -> None:
    app = await runs_on_n1(scheduler, copy_minutes=10)
    await scheduler.joins("n2")
    words = "n1: its volumes could not be read within the 20 s they may stand still"
    for times in (1, 2):
        told = await order(scheduler, "n2", app, role="take")
        await says(scheduler, "n2", app, told, phase="copying", words=words, refused=True)
        after, failures = await next_copy(scheduler, app)
        assert after is not None
        pause = after - scheduler.harness.clock.now()
        assert (failures, pause > timedelta(minutes=59) * times) == (times, True)
        scheduler.harness.clock.advance(pause.total_seconds() + 1)
        await alive(scheduler, "n1", app)
        await alive(scheduler, "n2")
    alerts = await scheduler.harness.events(AlertRaised)
    assert [one.details["why"] for one in alerts if one.title.endswith("while it runs")] == [words]


async def test_a_move_whose_target_is_removed_ends_where_it_began(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler)
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode="frozen"))
    await order(scheduler, "n2", app, mode="final")
    await scheduler.told("n1", app, slots=0)
    await scheduler.harness.publish(stopped(app, reason="moved"))
    # A power cut of both.
    await silence(scheduler, "n1", "n2")
    with pytest.raises(Conflict, match="on its way to n2"):
        await scheduler.bus.ask(NodeRemoved(node="n2"))
    await scheduler.bus.ask(NodeRemoved(node="n2", force=True))
    await scheduler.harness.settle()
    assert (await scheduler.told("n1", app, slots=0)).moving, "nobody is there to go on"
    await alive(scheduler, "n1")
    assert not (await scheduler.told("n1", app, slots=1)).moving
    assert await places(scheduler, app) == [("n1", False)]
    alert = await scheduler.harness.event(AlertRaised, lambda e: e.title.startswith("An app could not"))
    assert alert.details["why"] == "the node it was to go to was removed"


async def test_what_cannot_go_on_keeps_nobody_waiting_who_can(
    scheduler: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "BATCH", 1)
    # The first that is looked at has a copy where there is no memory for it.
    stays, goes = (stateful(copy_minutes=10, id=f"app_{i:026d}") for i in range(2))
    await scheduler.joins("n1")
    for app, node, memory in ((stays, "n2", 100), (goes, "n3", 1000)):
        await scheduler.harness.publish(AppChanged(spec=app))
        await scheduler.told("n1", app, slots=1)
        await scheduler.joins(node, memory_mb=memory)
        await says(scheduler, node, app, await order(scheduler, node, app, role="take"))
        await scheduler.bus.ask(NodeChanged(node=node, disabled=True))
    for node in ("n2", "n3"):
        await scheduler.bus.ask(NodeChanged(node=node, disabled=False))
    await silence(scheduler, "n1", others=("n2", "n3"))
    await scheduler.told("n3", goes, slots=1)
    assert await scheduler.desired("n2", stays.id) is None


async def test_the_data_of_an_app_that_is_stopped_keeps_its_room(scheduler: Stage) -> None:
    large = (Volume(id=new_id("vol"), name="data", path="/data", size_mb=90_000),)
    app, other = spec(volumes=large), spec(volumes=large)
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    off = newer(app, state="stopped")

    async def reserves(disk_mb: int, memory_mb: int) -> None:
        async def look() -> bool:
            has = (await scheduler.node()).allocated
            return (has.disk_mb, has.memory_mb) == (disk_mb, memory_mb)

        await eventually(look, what=f"{disk_mb} MB of disk and {memory_mb} MB of memory")

    await scheduler.harness.publish(AppChanged(spec=off))
    await scheduler.told("n1", off, slots=0)
    # Said twice, it is given back once.
    await scheduler.harness.publish(stopped(app), stopped(app))
    await reserves(90_000, 0)
    await scheduler.harness.publish(AppChanged(spec=other))
    blocked = await scheduler.harness.event(PlacementBlocked, lambda e: e.workload == other.id)
    assert blocked.reasons == {"n1": "disk short by 80256 MB"}
    on = newer(off, state="running")
    await scheduler.harness.publish(AppChanged(spec=on))
    await scheduler.told("n1", on, slots=1)
    await reserves(90_256, 128)
    # With its volumes, their room is free.
    off, gone = newer(on, state="stopped"), newer(newer(on), state="deleted")
    await scheduler.harness.publish(AppChanged(spec=off))
    await scheduler.told("n1", off, slots=0)
    await scheduler.harness.publish(stopped(on))
    await reserves(90_000, 0)
    await scheduler.harness.publish(AppDeleted(spec=gone))
    await scheduler.told("n1", gone, slots=0)
    scheduler.harness.clock.advance(120)
    await alive(scheduler, "n1")
    await scheduler.told("n1", other, slots=1)
    await reserves(90_256, 128)


async def test_the_data_of_an_app_that_is_stopped_moves_with_its_room(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler)
    off = newer(app, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=off))
    await scheduler.told("n1", off, slots=0)
    await scheduler.harness.publish(stopped(app))
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    for mode in ("frozen", "final"):
        await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode=mode))
    await no_orders(scheduler)
    assert (await scheduler.node("n2")).allocated.disk_mb == 512
    scheduler.harness.clock.advance(120)
    await alive(scheduler, "n2")
    await alive(scheduler, "n1")

    async def empty() -> bool:
        return (await scheduler.node("n1")).allocated.disk_mb == 0

    await eventually(empty, what="the room at its old home")
    assert (await scheduler.node("n2")).allocated.disk_mb == 512


async def is_stopped(stage: Stage, app: WorkloadSpec) -> WorkloadSpec:
    """It runs no more, and its data is where it was."""
    off = newer(app, state="stopped")
    await stage.harness.publish(AppChanged(spec=off))
    await stage.told("n1", off, slots=0)
    await stage.harness.publish(stopped(app))

    async def only_data() -> bool:
        return bool(
            await stage.runtime.store.read(
                "select 1 from placement where workload = %s and memory_mb = 0", (app.id,)
            )
        )

    await eventually(only_data, what="the end of its instance")
    return off


async def test_what_starts_again_while_its_last_instance_ends_takes_its_whole_room(
    scheduler: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await runs_on_n1(scheduler)
    off = newer(app, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=off))
    await scheduler.told("n1", off, slots=0)
    lock = Roster.lock

    async def late(
        roster: Roster, connection: AsyncConnection[Any], names: Iterable[str]
    ) -> dict[str, Node | None]:
        """Between its plan and the lock of its node."""
        monkeypatch.setattr(Roster, "lock", lock)
        async with scheduler.runtime.store.transaction(PLATFORM) as tx:
            await Departures(lambda: None).stopped([stopped(app)], tx)
        return await lock(roster, connection, names)

    monkeypatch.setattr(Roster, "lock", late)
    on = newer(off, state="running")
    await scheduler.harness.publish(AppChanged(spec=on))
    await scheduler.told("n1", on, slots=1)
    assert Roster.lock is lock
    has = (await scheduler.node()).allocated
    assert (has.cpu_millis, has.memory_mb, has.disk_mb) == (100, 128, 256 + 512)


async def test_two_instances_of_a_slot_that_end_together_give_its_room_back_once(scheduler: Stage) -> None:
    app, other = spec(), spec()
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app), AppChanged(spec=other))
    await scheduler.told("n1", other, slots=1)
    off = newer(app, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=off))
    await scheduler.told("n1", off, slots=0)
    async with scheduler.runtime.store.transaction(PLATFORM) as tx:
        await Departures(lambda: None).stopped([stopped(app), stopped(app)], tx)
    has = (await scheduler.node()).allocated
    assert (has.cpu_millis, has.memory_mb, has.disk_mb) == (100, 128, 256), "of the other one"


async def test_the_room_of_data_comes_back_when_its_app_is_deleted_while_it_is_stopped(
    scheduler: Stage,
) -> None:
    off = await is_stopped(scheduler, await runs_on_n1(scheduler, grace_seconds=60))
    gone = newer(off, state="deleted")
    await scheduler.harness.publish(AppDeleted(spec=gone))
    await scheduler.told("n1", gone, slots=0)
    # Its node has said that it runs nothing of it, and its grace is not over yet.
    for seconds in (70, 70):
        scheduler.harness.clock.advance(seconds)
        await alive(scheduler, "n1")
        await loop(scheduler, "forget").work()
    assert (await scheduler.node()).allocated.disk_mb == 0
    await loop(scheduler, "forget").work()
    assert await scheduler.desired("n1", gone.id) is None, "and only then it is forgotten"


async def refused(stage: Stage, app: WorkloadSpec) -> None:
    """It cannot be copied while it runs, says its node."""
    words = "n1: its volumes could not be read within the 20 s they may stand still"
    told = await order(stage, "n2", app, role="take")
    await says(stage, "n2", app, told, phase="copying", words=words, refused=True)
    after, _ = await next_copy(stage, app)
    assert after is not None
    assert after - stage.harness.clock.now() > timedelta(minutes=59)
    await no_orders(stage)


async def test_a_node_that_is_to_be_emptied_does_not_wait_until_a_copy_is_tried_again(
    scheduler: Stage,
) -> None:
    app = await runs_on_n1(scheduler, copy_minutes=10)
    await scheduler.joins("n2")
    await refused(scheduler, app)
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    await order(scheduler, "n2", app, mode="frozen")
    assert await transfers(scheduler) == [(app.id, "move")]


async def test_what_cannot_be_copied_while_it_runs_is_copied_as_soon_as_it_is_stopped(
    scheduler: Stage,
) -> None:
    app = await runs_on_n1(scheduler)
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    await refused(scheduler, app)
    # Another release changes nothing.
    after = await next_copy(scheduler, app)
    app = newer(app)
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    assert await next_copy(scheduler, app) == after
    await is_stopped(scheduler, app)
    for mode in ("frozen", "final"):
        await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode=mode))
    await no_orders(scheduler)
    assert (await scheduler.bus.ask(CopiesOf(workload=app.id))).home == "n2"


async def test_what_is_started_while_it_moves_goes_on_from_its_copy_when_its_node_is_lost(
    scheduler: Stage,
) -> None:
    off = await is_stopped(scheduler, await runs_on_n1(scheduler))
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    await says(scheduler, "n2", off, await order(scheduler, "n2", off, mode="frozen"))
    await order(scheduler, "n2", off, mode="final")
    await silence(scheduler, "n1", others=("n2",))
    await scheduler.harness.settle()
    assert (await scheduler.bus.ask(CopiesOf(workload=off.id))).home == "n1", "nobody waits for it"
    on = newer(off, state="running")
    await scheduler.harness.publish(AppChanged(spec=on))
    assert (await scheduler.told("n2", on, slots=1)).home == 1


async def test_a_look_at_many_ends_and_the_next_one_goes_on_from_there(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "BATCH", 2)
    monkeypatch.setattr(copies, "PAGES", 1)
    apps = sorted(new_id("app") for _ in range(5))
    async with stage.runtime.store.transaction(PLATFORM) as tx:
        connection = await tx.connection()
        for app in apps:
            await connection.execute(
                "insert into workload (id, organization, region, generation, spec, in_force) "
                "values (%s, 'org', 'eu', 1, '{}', %s)",
                (app, stateful(id=app).model_dump_json()),
            )
    seen: list[str] = []

    async def note(_tx: object, _connection: object, facts: Facts) -> None:
        seen.append(facts.id)

    work = copies.Copies(stage.runtime, Moves(stage.runtime, lambda: None, lambda: None))
    for looks in range(1, 5):
        await work._each("select id from workload", note)
        assert seen == (apps + apps)[: min(2 * looks, 5) + (2 if looks == 4 else 0)]


async def test_what_starts_by_another_process_takes_the_room_of_its_data(scheduler: Stage) -> None:
    large = (Volume(id=new_id("vol"), name="data", path="/data", size_mb=90_000),)
    app = spec(volumes=large)
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    off = await is_stopped(scheduler, app)
    on = newer(off, state="running", processes={"worker": Process(replicas=1)})
    await scheduler.harness.publish(AppChanged(spec=on))
    assert str((await scheduler.told("n1", on, slots=1)).slots[0]) == "worker.1"
    has = (await scheduler.node()).allocated
    assert (has.memory_mb, has.disk_mb) == (128, 90_256)
    assert await places(scheduler, app) == [("n1", False)]


async def test_a_copy_of_which_nothing_is_heard_leaves_its_turn_in_the_end(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler, copy_minutes=10)
    await scheduler.joins("n2")
    await order(scheduler, "n2", app)
    for minutes, left in ((55, 1), (10, 0)):
        scheduler.harness.clock.advance(60 * minutes)
        await alive(scheduler, "n1", app)
        await alive(scheduler, "n2")
        await look_after(scheduler)
        assert len(await transfers(scheduler)) == left


async def test_what_moves_to_its_copy_needs_no_room_for_its_data_besides(scheduler: Stage) -> None:
    large = (Volume(id=new_id("vol"), name="data", path="/data", size_mb=60_000),)
    app = spec(volumes=large, copy_minutes=10)
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    await scheduler.joins("n2")
    await says(scheduler, "n2", app, await order(scheduler, "n2", app))
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    last = await order(scheduler, "n2", app, mode="frozen")
    assert (await scheduler.node("n2")).allocated.disk_mb == 60_256
    await says(scheduler, "n2", app, last)
    await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode="final"))
    await scheduler.told("n2", app, slots=1)
    has = (await scheduler.node("n2")).allocated
    assert (has.memory_mb, has.disk_mb) == (128, 60_256)
