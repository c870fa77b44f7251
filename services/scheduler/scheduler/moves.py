"""What nodes say of copies, and what follows: a copy there is, instances that end, another home, or none.

Invariant: a workload's home changes only here, and only to a copy that its node has said is complete; while
it moves, only when the instances at the old home have ended. Whatever is said twice or late changes nothing.
Called by `app` for reports and events, and by `copies`.
"""

import secrets
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from contracts.copies import CopyClaim
from contracts.errors import Conflict, Unavailable
from contracts.events import AlertRaised, InstanceStarted, PlacementDecided, VolumesMoved
from contracts.ids import new_id
from contracts.reports import CopyState
from psycopg import AsyncConnection
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

from scheduler import rehome
from scheduler.facts import Facts, facts_of, reserved_by, wait
from scheduler.fleet import Room
from scheduler.homing import disk_of

# Before another is begun, after one that failed: twice as long each time, since others wait for its turn.
PAUSE, LONGEST_PAUSE = timedelta(minutes=2), timedelta(days=1)

# A move whose instances have ended goes back when nothing has come over for so long, and for the time that
# both ends may take to read all of it.
PATIENCE = timedelta(minutes=3)
# One that its node says does not get on leaves its turn to others after so long.
STUCK = timedelta(minutes=10)
# And one of which nothing new is heard at all, as where an agent has broken over it, after so long, and the
# time that all of it may be read in several times.
MUTE = timedelta(hours=1)

# What is under way and cannot go on as it is.
HOPELESS = f"""
select t.workload from transfer t
left join node s on s.name = t.source left join node n on n.name = t.target
left join workload w on w.id = t.workload
where (%(only)s::text is null or t.workload = %(only)s) and (
    coalesce(s.status, '') <> 'online' or n.status <> 'online' or n.draining
    or w.bound is distinct from t.source
    or (t.why = 'move' and t.mode = 'frozen' and not s.draining)
    or (t.mode = 'frozen' and t.stuck_since < %(now)s - interval '{STUCK.total_seconds()} s')
    or (t.mode = 'frozen'
        and t.moved_at < %(now)s - interval '{MUTE.total_seconds()} s' - t.total_mb * interval '100 ms')
    or (t.mode = 'final'
        and t.moved_at < %(now)s - interval '{PATIENCE.total_seconds()} s' - t.total_mb * interval '20 ms')
    or w.in_force ->> 'state' = 'deleted' or (t.why = 'copy' and w.in_force ->> 'copy_minutes' is null)
)
"""
# The giving node refuses it for so long at least, because the volumes would stand still in vain.
REFUSED = timedelta(hours=1)

_COMPLETE = """
insert into copy (workload, node, id, taken_at, digest, volumes, complete_at)
values (%(workload)s, %(node)s, %(id)s, %(taken)s, %(digest)s, %(volumes)s, %(now)s)
on conflict (workload, node) do update set id = excluded.id, taken_at = excluded.taken_at,
    digest = excluded.digest, volumes = excluded.volumes, complete_at = excluded.complete_at,
    dropping = false, missing = false
"""

_PROGRESS = """
update transfer set done_mb = %(done)s, total_mb = %(total)s, sent_mb = %(sent)s, words = %(words)s,
    moved_at = case when (done_mb, sent_mb) is distinct from (%(done)s::bigint, %(sent)s::bigint)
        then %(now)s else moved_at end,
    stuck_since = case when %(words)s::text is not null then coalesce(stuck_since, %(now)s) end
where workload = %(workload)s and id = %(id)s and target = %(node)s
"""

_ARRIVED = """
select w.id from workload w
join unnest(%s::text[], %s::text[]) as up(workload, node) on w.id = up.workload and w.bound = up.node
where w.home > w.proven
"""


class Moves:
    def __init__(self, runtime: Runtime, place: Callable[[], None], project: Callable[[], None]) -> None:
        self._runtime = runtime
        self._place = place
        self._project = project
        self._nudge: Callable[[], None] = lambda: None

    def on_change(self, call: Callable[[], None]) -> None:
        self._nudge = call

    # --- what nodes say ------------------------------------------------------------------------------

    async def heard(self, reports: Sequence[CopyState]) -> None:
        newest = {(r.node, r.workload, r.copy_id): r for r in reports}
        for report in newest.values():
            try:
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    await self._hear(tx, await tx.connection(), report)
            except Unavailable:
                raise
            except Exception:
                # It is said again; what others say is heard meanwhile.
                self._runtime.log.exception("what was said of a copy is lost on us", node=report.node)

    async def _hear(self, tx: Tx, connection: AsyncConnection[Any], report: CopyState) -> None:
        if report.phase == "copying":
            said = {
                "workload": report.workload,
                "id": report.copy_id,
                "node": report.node,
                "done": report.done_mb,
                "total": report.total_mb,
                "sent": report.sent_mb,
                "words": report.words,
                "now": self._runtime.clock.now(),
            }
            await connection.execute(_PROGRESS, said, prepare=True)
            if report.refused:
                await self._refused(tx, connection, report)
            return
        facts = await facts_of(connection, report.workload)
        if facts is None:
            # It is said again.
            return
        if report.phase == "dropped":
            held = facts.held.get(report.node)
            if held is not None and held["dropping"] and held["id"] == report.copy_id:
                await _forget(connection, facts, report.node)
                tx.after_commit(self._nudge)
            return
        transfer = facts.transfer
        if transfer is None or (transfer["id"], transfer["target"]) != (report.copy_id, report.node):
            return
        await self._completed(tx, connection, facts, report)

    async def _completed(
        self, tx: Tx, connection: AsyncConnection[Any], facts: Facts, report: CopyState
    ) -> None:
        transfer, now = facts.transfer, self._runtime.clock.now()
        assert transfer is not None
        assert report.taken_at is not None, "a complete copy is of a moment"
        done = {
            "workload": facts.id,
            "node": report.node,
            "id": report.copy_id,
            # A node whose clock is ahead does not make a copy newer than now.
            "taken": min(report.taken_at, now),
            "digest": report.digest,
            "volumes": list(report.volumes),
            "now": now,
        }
        await connection.execute(_COMPLETE, done, prepare=True)
        tx.after_commit(self._nudge)
        if transfer["why"] == "copy":
            await wait(connection, facts.id, None, failures=0)
            await connection.execute("delete from transfer where workload = %s", (facts.id,), prepare=True)
        elif transfer["mode"] == "frozen":
            # What is left is little: its instances end, and the last of it follows.
            await rehome.leave(connection, facts.id, str(facts.bound))
            await connection.execute(
                "update transfer set mode = 'final', id = %s, secret = %s, moved_at = %s, words = null, "
                "stuck_since = null "
                "where workload = %s",
                (new_id("cpy"), secrets.token_urlsafe(32), now, facts.id),
                prepare=True,
            )
            tx.after_commit(self._project)
        else:
            again = await facts_of(connection, facts.id)
            assert again is not None, "it is locked by us"
            try:
                await self.move(tx, connection, again, report.node, lost_until=None)
            except Conflict as error:
                self._runtime.log.warning("a move ends where it began", workload=facts.id, why=error.message)
                await self._give_up(tx, connection, again)

    async def move(
        self,
        tx: Tx,
        connection: AsyncConnection[Any],
        facts: Facts,
        target: str,
        *,
        lost_until: datetime | None,
    ) -> None:
        demand, source = facts.demand, str(facts.bound)
        held = facts.held[target]
        taken_at = datetime.fromisoformat(held["taken_at"])
        claim = CopyClaim(id=held["id"], taken_at=taken_at)
        await rehome.go(
            connection,
            facts.id,
            source=source,
            target=target,
            claim=claim,
            volumes=held["volumes"],
            slots=demand.slots,
            room=demand.room,
            disk_mb=disk_of(facts.spec),
            given=facts.given(target),
            now=self._runtime.clock.now(),
        )
        if facts.transfer is not None and facts.transfer["target"] != target:
            await self._release(connection, facts)
        await connection.execute("delete from transfer where workload = %s", (facts.id,), prepare=True)
        await connection.execute(
            "delete from copy where workload = %s and node = %s", (facts.id, target), prepare=True
        )
        await wait(connection, facts.id, None, failures=0)
        lost = lost_until is not None
        tx.publish(
            VolumesMoved(
                workload=facts.id,
                organization=facts.organization,
                source=source,
                target=target,
                taken_at=taken_at,
                lost_until=lost_until,
            )
        )
        if demand.slots and facts.spec.generation == facts.generation:
            tx.publish(
                PlacementDecided(
                    workload=facts.id,
                    organization=facts.organization,
                    generation=facts.generation,
                    deployment=facts.spec.deployment,
                    nodes=(target,),
                    lost=(source,) if lost else (),
                )
            )
        if lost_until is not None:
            tx.publish(
                AlertRaised(
                    service=self._runtime.name,
                    severity="critical",
                    title=f"An app goes on from a copy: {source} cannot be heard",
                    details={
                        "workload": facts.id,
                        "node": target,
                        "copied_at": taken_at.isoformat(),
                        "lost": f"what was written from then to {lost_until.isoformat()}",
                        "kept": f"the volumes on {source}, put aside when it is back",
                    },
                )
            )
        self._runtime.log.info(
            "data has another home", workload=facts.id, source=source, target=target, lost=lost
        )
        tx.after_commit(self._project)
        tx.after_commit(self._place)
        tx.after_commit(self._nudge)

    # --- what does not go well -----------------------------------------------------------------------

    async def judge(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        """Of one under way that cannot go on as it is; asked again, as it may have got on before the lock."""
        asked = {"now": self._runtime.clock.now(), "only": facts.id}
        cursor = await connection.execute(HOPELESS, asked, prepare=True)
        if facts.transfer is None or await cursor.fetchone() is None:
            return
        source = await (
            await connection.execute("select status from node where name = %s", (facts.bound,), prepare=True)
        ).fetchone()
        if (
            facts.moving
            and facts.transfer["source"] == facts.bound
            and (source is None or source[0] != "online")
        ):
            # The last of the data is there. When the node is back it goes on; a copy is gone on from before.
            return
        await self._give_up(tx, connection, facts)

    async def _refused(self, tx: Tx, connection: AsyncConnection[Any], report: CopyState) -> None:
        facts = await facts_of(connection, report.workload)
        if facts is None or facts.transfer is None:
            # It is said again, if there is anything to be given up.
            return
        if (facts.transfer["id"], facts.transfer["target"]) != (report.copy_id, report.node):
            return
        if facts.copy_failures == 0:
            self._warn(
                tx,
                facts,
                "The volumes of an app cannot be copied while it runs",
                why=report.words or "",
                next="it is tried later and later; on XFS, or while the app is stopped, it can",
            )
        await self._give_up(tx, connection, facts, REFUSED)

    async def _give_up(
        self, tx: Tx, connection: AsyncConnection[Any], facts: Facts, pause: timedelta = PAUSE
    ) -> None:
        transfer = facts.transfer
        assert transfer is not None
        await self._release(connection, facts)
        await connection.execute("delete from transfer where workload = %s", (facts.id,), prepare=True)
        pause = min(pause * 2 ** min(facts.copy_failures, 16), LONGEST_PAUSE)
        await wait(connection, facts.id, self._runtime.clock.now() + pause, failures=facts.copy_failures + 1)
        if facts.moving:
            await self._go_back(tx, connection, facts, transfer["target"], transfer["words"])
        self._runtime.log.info(
            "a copy is given up", workload=facts.id, target=transfer["target"], words=transfer["words"]
        )
        tx.after_commit(self._nudge)

    async def come_back(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        """Of one that moves, and has nowhere to any more."""
        if facts.moving and facts.transfer is None:
            await self._go_back(tx, connection, facts, None, "the node it was to go to was removed")

    async def _go_back(
        self, tx: Tx, connection: AsyncConnection[Any], facts: Facts, target: str | None, why: str | None
    ) -> None:
        """Its data is where it was."""
        demand = facts.demand
        await rehome.come_back(connection, facts.id, str(facts.bound), demand.slots, demand.room)
        tx.after_commit(self._project)
        tx.after_commit(self._place)
        self._warn(
            tx,
            facts,
            "An app could not be moved with its data, and goes on where it was",
            to=target or "",
            why=why or "nothing came over",
        )

    def _warn(self, tx: Tx, facts: Facts, title: str, **details: str) -> None:
        about = {"workload": facts.id, "node": str(facts.bound), **details}
        tx.publish(AlertRaised(service=self._runtime.name, severity="warning", title=title, details=about))

    @staticmethod
    async def _release(connection: AsyncConnection[Any], facts: Facts) -> None:
        assert facts.transfer is not None
        target = facts.transfer["target"]
        await rehome.lock_nodes(connection, target)
        await rehome.reserve(connection, target, rehome.less(reserved_by(facts.transfer, target)))

    # --- it runs at its home ---------------------------------------------------------------------------

    async def started(self, events: Sequence[InstanceStarted], tx: Tx) -> None:
        connection = await tx.connection()
        columns = [e.workload for e in events], [e.node for e in events]
        for (workload,) in await (await connection.execute(_ARRIVED, columns, prepare=True)).fetchall():
            facts = await facts_of(connection, workload)
            # One that somebody else is at is found by the loop.
            if facts is not None:
                await self.prove(tx, connection, facts)

    async def remember(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        await rehome.remember(connection, facts.id)
        tx.after_commit(self._project)

    async def prove(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        await rehome.prove(connection, facts.id)
        tx.after_commit(self._project)


async def _forget(connection: AsyncConnection[Any], facts: Facts, node: str) -> None:
    await rehome.lock_nodes(connection, node)
    await rehome.reserve(connection, node, Room(0, 0, -facts.held[node]["disk_mb"]))
    await connection.execute(
        "delete from copy where workload = %s and node = %s", (facts.id, node), prepare=True
    )
