"""The data of workloads: copied where their plan says so, moved off nodes that are emptied, gone on with from
the newest copy where a node is lost.

Invariant: what is ordered stands in the tables, and the bucket `copies` is made from them. What is to be done
is found by looking, so no message can be missed. Runs as a loop of `app`; what follows from what nodes say is
in `moves`.
"""

import secrets
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.errors import Conflict, Unavailable
from contracts.ids import new_id
from psycopg import AsyncConnection
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

from scheduler import homing, rehome
from scheduler.facts import Facts, facts_of, wait
from scheduler.fleet import NOTHING, Fleet, Room
from scheduler.homing import AT_ONCE
from scheduler.moves import HOPELESS, Moves
from scheduler.orders import Orders
from scheduler.roster import Roster

BATCH = 100
# Of a kind, a look goes through so many pages, and the next one goes on from there: where a region is lost,
# nobody's order is to wait until all that cannot be helped has been looked at.
PAGES = 5
# A node that could take the data may have joined or come back by then.
NOWHERE = timedelta(seconds=20)

# Without data there is nothing to look for, and a platform that has none looks by one question.
_DATA = """
select exists (select from workload where bound is not null) or exists (select from copy)
    or exists (select from transfer)
"""

# What is found, those that were put off last. Where nothing can be done for one page, the next is looked at.
_PAGE = """
select coalesce(w.copy_after, 'epoch') as turn, w.id from workload w
where w.id in ({found}) and (coalesce(w.copy_after, 'epoch'), w.id) > (%(turn)s, %(after)s)
order by turn, w.id limit %(limit)s
"""
_FIRST = datetime(1970, 1, 1, tzinfo=UTC), ""

# What is wanted of one that moves is not in force before it has a home.
_LOST = """
select w.id from workload w left join node n on n.name = w.bound
cross join lateral (select case when w.moving then w.spec else w.in_force end as spec) wanted
where w.bound is not null and (n.name is null or n.status = 'offline')
    and wanted.spec ->> 'state' = 'running' and wanted.spec ->> 'image' is not null
    and exists (
        select from copy c join node t on t.name = c.node
        where c.workload = w.id and c.taken_at is not null and not c.dropping and not c.missing
            and t.status = 'online' and c.node <> w.bound
    )
"""

# Its home gives and takes less than it may at a time.
_HAS_A_TURN = f"(select count(*) from transfer t where w.bound in (t.source, t.target)) < {AT_ONCE}"

_DRAINED = f"""
select w.id from workload w join node n on n.name = w.bound
where n.draining and n.status = 'online' and not w.moving and w.in_force ->> 'state' <> 'deleted'
    and (w.copy_after is null or w.copy_after <= %(now)s)
    and not exists (select from transfer t where t.workload = w.id)
    and {_HAS_A_TURN}
"""

_UNCOPIED = f"""
select w.id from workload w join node n on n.name = w.bound and n.status = 'online'
where w.in_force ->> 'copy_minutes' is not null and w.in_force ->> 'state' <> 'deleted'
    and not w.moving and not n.draining and (w.copy_after is null or w.copy_after <= %(now)s)
    and not exists (select from transfer t where t.workload = w.id)
    and {_HAS_A_TURN}
    and not exists (
        select from copy c join node h on h.name = c.node
        where c.workload = w.id and not c.dropping and not c.missing
            and not h.draining and h.status = 'online'
            and c.taken_at > %(now)s - (w.in_force ->> 'copy_minutes')::int * interval '1 minute'
    )
"""

# Its instances have ended for a move there is no more: the node it was to go to was removed.
_STRANDED = """
select w.id from workload w join node n on n.name = w.bound and n.status = 'online'
where w.moving and not exists (select from transfer t where t.workload = w.id)
"""

# Held where there is nothing to be held for; more of them than are wanted; one lost of those a plan had.
_SURPLUS = """
select w.id from workload w where w.id in (select workload from copy where not dropping) and (
    w.in_force ->> 'copy_minutes' is null or w.in_force ->> 'state' = 'deleted' or w.bound is null
    or (select count(*) from copy c where c.workload = w.id and not c.dropping) > 1
)
"""

_BEGIN = """
insert into transfer (
    workload, id, secret, source, target, why, mode, since, moved_at, cpu_millis, memory_mb, disk_mb
) values (
    %(workload)s, %(id)s, %(secret)s, %(source)s, %(target)s, %(why)s, 'frozen', %(now)s, %(now)s,
    %(cpu)s, %(memory)s, %(disk)s
)
"""

_HOLD = """
insert into copy (workload, node, disk_mb) values (%(workload)s, %(node)s, %(disk)s)
on conflict (workload, node) do update set disk_mb = excluded.disk_mb, dropping = false,
    id = case when copy.dropping then null else copy.id end,
    taken_at = case when copy.dropping then null else copy.taken_at end
"""

_UNPROVEN = """
select w.id from workload w join node_usage u on u.node = w.bound
where w.home > w.proven and not w.moving and u.instances ? w.id and w.homed_at < u.at
"""

# A home that says it has a volume nobody knew to be made.
_NEW = """
select w.id from workload w join node_usage u on u.node = w.bound
where u.volumes ? w.id and not w.moving and (w.homed_at is null or w.homed_at < u.at) and exists (
    select from jsonb_array_elements(w.in_force -> 'volumes') as volume
    where u.volumes -> w.id ? (volume ->> 'id') and volume ->> 'id' <> all(w.made)
)
"""


class Copies:
    def __init__(self, runtime: Runtime, moves: Moves) -> None:
        self._runtime = runtime
        self._moves = moves
        self._orders = Orders(runtime)
        # Only read: what is taken is taken from rows under lock.
        self._roster = Roster(pack=False)
        self._nudge: Callable[[], None] = lambda: None
        # Of those of whom there were more than a look goes through, the last one.
        self._left_at: dict[str, tuple[datetime, str]] = {}
        # Whether there was any at the last look: what went with the last of it is told once more.
        self._had_data = True

    def on_change(self, call: Callable[[], None]) -> None:
        self._nudge = call

    async def work(self) -> None:
        [(has_data,)] = await self._runtime.store.look(_DATA)
        if has_data or self._had_data:
            await self._look_after()
        self._had_data = has_data

    async def _look_after(self) -> None:
        await self._each(_LOST, self._go_on)
        await self._each(HOPELESS, self._moves.judge)
        await self._each(_STRANDED, self._moves.come_back)
        await self._each(_DRAINED, self._begin_move)
        await self._each(_UNCOPIED, self._begin_copy)
        await self._each(_SURPLUS, self._drop)
        await self._each(_UNPROVEN, self._moves.prove)
        if self._runtime.bus.connected:
            await self._orders.write()

    async def remember(self) -> None:
        """Volumes are made once: what a home has had, it is not to make again when it has lost it."""
        await self._each(_NEW, self._moves.remember)

    async def _each(self, found: str, work: Callable[[Tx, AsyncConnection[Any], Facts], Any]) -> None:
        page, (turn, after) = _PAGE.format(found=found), self._left_at.pop(found, _FIRST)
        now = self._runtime.clock.now()
        for _ in range(PAGES):
            asked = {"now": now, "only": None, "turn": turn, "after": after, "limit": BATCH}
            async with self._runtime.store.transaction(PLATFORM) as tx:
                connection = await tx.connection()
                rows = await (await connection.execute(page, asked, prepare=True)).fetchall()
            for _, workload in rows:
                await self._one(workload, work)
            if len(rows) < BATCH:
                return
            turn, after = rows[-1]
        self._left_at[found] = turn, after

    async def _one(self, workload: str, work: Callable[[Tx, AsyncConnection[Any], Facts], Any]) -> None:
        try:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                connection = await tx.connection()
                facts = await facts_of(connection, workload)
                if facts is not None:
                    await work(tx, connection, facts)
        except Conflict as error:
            # The room was taken by somebody else meanwhile: the next look finds what there is.
            self._runtime.log.info("data stays where it is", workload=workload, why=error.message)
        except Unavailable:
            raise
        except Exception:
            # One that breaks must not keep the others' data where it cannot stay.
            self._runtime.log.exception("data could not be looked after", workload=workload)

    async def _fleet(self, connection: AsyncConnection[Any]) -> Fleet:
        return await self._roster.refresh(connection)

    # --- a node is lost ------------------------------------------------------------------------------

    async def _go_on(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        fleet = await self._fleet(connection)
        source = str(facts.bound)
        there = fleet.node(source)
        if facts.bound is None or (there is not None and there.online):
            return
        nodes = {c.node: node for c in facts.copies if (node := fleet.node(c.node)) is not None}
        copy, why = homing.failover_choice(
            nodes, facts.demand, facts.spec, facts.copies, {name: facts.given(name) for name in nodes}
        )
        if copy is None:
            self._runtime.log.info("no copy to go on from", workload=facts.id, reasons=dict(why))
            return
        await self._moves.move(tx, connection, facts, copy.node, lost_until=self._runtime.clock.now())

    # --- a node is emptied ---------------------------------------------------------------------------

    async def _begin_move(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        if facts.transfer is not None or facts.bound is None:
            return
        busy = await _busy(connection)
        if busy[facts.bound] >= AT_ONCE:
            return
        fleet, disk = await self._fleet(connection), homing.disk_of(facts.spec)
        held = {c.node: Room(0, 0, facts.held[c.node]["disk_mb"]) for c in facts.copies if c.complete}
        full = [node for node, count in busy.items() if count >= AT_ONCE]
        choice = homing.move_target(fleet, facts.demand, facts.bound, held, disk, busy=full)
        if choice.node is None:
            self._runtime.log.info(
                "data stays on a node that is emptied", workload=facts.id, reasons=dict(choice.reasons)
            )
            await wait(connection, facts.id, self._runtime.clock.now() + NOWHERE)
            return
        room = homing.whole_room(facts.demand, disk).beyond(held.get(choice.node, NOTHING))
        await rehome.lock_nodes(connection, choice.node)
        await rehome.take(connection, choice.node, room)
        await self._begin(tx, connection, facts, choice.node, why="move", room=room)

    # --- a plan with copies --------------------------------------------------------------------------

    async def _begin_copy(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        now = self._runtime.clock.now()
        if facts.transfer is not None or facts.bound is None:
            return
        busy = await _busy(connection)
        if busy[facts.bound] >= AT_ONCE:
            return
        fleet, disk = await self._fleet(connection), homing.disk_of(facts.spec)
        away = [
            c.node for c in facts.copies if (n := fleet.node(c.node)) is None or not n.online or n.draining
        ]
        if not homing.copy_due(now, facts.spec.copy_minutes, facts.copies, away):
            return
        held = [c.node for c in facts.copies if not c.dropping]
        choice = homing.copy_target(fleet, facts.demand, facts.bound, held, disk)
        if choice.node is None:
            self._runtime.log.info("nowhere to copy to", workload=facts.id, reasons=dict(choice.reasons))
            await wait(connection, facts.id, now + NOWHERE)
            return
        if busy[choice.node] >= AT_ONCE:
            return
        has = facts.held.get(choice.node)
        before = 0 if has is None else has["disk_mb"]
        await rehome.lock_nodes(connection, choice.node)
        await rehome.take(connection, choice.node, Room(0, 0, disk), Room(0, 0, before))
        hold = {"workload": facts.id, "node": choice.node, "disk": disk}
        await connection.execute(_HOLD, hold, prepare=True)
        await self._begin(tx, connection, facts, choice.node, why="copy", room=NOTHING)

    async def _begin(
        self, tx: Tx, connection: AsyncConnection[Any], facts: Facts, target: str, *, why: str, room: Room
    ) -> None:
        transfer = {
            "workload": facts.id,
            "id": new_id("cpy"),
            "secret": secrets.token_urlsafe(32),
            "source": facts.bound,
            "target": target,
            "why": why,
            "now": self._runtime.clock.now(),
            "cpu": room.cpu_millis,
            "memory": room.memory_mb,
            "disk": room.disk_mb,
        }
        await connection.execute(_BEGIN, transfer, prepare=True)
        self._runtime.log.info(
            "data is copied", workload=facts.id, why=why, source=facts.bound, target=target
        )
        tx.after_commit(self._nudge)

    # --- copies nobody wants ---------------------------------------------------------------------------

    async def _drop(self, tx: Tx, connection: AsyncConnection[Any], facts: Facts) -> None:
        wanted = facts.spec.copy_minutes is not None and facts.spec.state != "deleted" and bool(facts.bound)
        under_way = None if facts.transfer is None else facts.transfer["target"]
        for node in homing.surplus(facts.copies, wanted=wanted, home=facts.bound, under_way=under_way):
            await connection.execute(
                "update copy set dropping = true, id = %s, taken_at = null where workload = %s and node = %s",
                (new_id("cpy"), facts.id, node),
                prepare=True,
            )
            tx.after_commit(self._nudge)


async def _busy(connection: AsyncConnection[Any]) -> Counter[str]:
    """How many copies each node gives and takes."""
    cursor = await connection.execute("select source, target from transfer", prepare=True)
    return Counter(name for ends in await cursor.fetchall() for name in ends)
