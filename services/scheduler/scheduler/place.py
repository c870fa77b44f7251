"""Carries plans out: takes workloads that are due, plans them against the fleet, writes what still holds.

Invariant: a plan is checked again on locked rows before it is written, so schedulers that work at once never
promise the same room twice. Locks are taken in one order: workloads, nodes by name, placements, projections.
While the database writes one batch the next is planned; one of them decides and one writes at any time.
Blocked workloads are taken again as soon as capacity has returned to their region, and those on a node that
cannot keep them at once. Runs as a loop of `app`.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from contracts.errors import Unavailable
from contracts.events import AlertRaised, PlacementBlocked, PlacementDecided
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

from scheduler.due import BATCH, Due, chosen, take
from scheduler.fleet import NOTHING, Fleet, Room
from scheduler.plan import Plan, make_plan, recheck
from scheduler.reconcile import OFFLINE, Demand, Placed
from scheduler.roster import Roster

LONGEST_WAIT = 600
# Batches after which it is asked again what has to be evacuated.
BATCHES = 16

_LEFT_ALONE = "select name from node where evacuate"

# What is on nodes that have gone or are to be emptied is due; workloads are locked before nodes.
_EVACUATE = """
with chosen as (
    select w.id from workload w
    where w.id in (select workload from placement where node = any(%(nodes)s) and leaving is null)
    order by w.id for no key update of w
), due as (
    update workload w set due_at = least(w.due_at, now()) from chosen where w.id = chosen.id returning 1
)
select count(*) from due
"""

_EVACUATED = """
update node set evacuate = false where name in (
    select name from node where name = any(%(nodes)s) order by name for no key update
)
"""

_PLACED = """
select workload, process, index, node, cpu_millis, memory_mb, disk_mb, leaving is not null, relieved_by
from placement where workload = any(%s) order by workload, process, index, node
"""

_TOLD_NODES = "select workload, node from projection where workload = any(%s)"

_PUT = """
insert into placement (workload, process, index, node, cpu_millis, memory_mb, disk_mb)
select * from unnest(
    %s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[]
)
on conflict (workload, process, index, node) do update set
    cpu_millis = excluded.cpu_millis, memory_mb = excluded.memory_mb, disk_mb = excluded.disk_mb,
    leaving = null, relieved_by = null
"""

_RELIEVE = """
update placement p set relieved_by = next.node
from unnest(%s::text[], %s::text[], %s::bigint[], %s::text[]) as next(workload, process, index, node)
where p.workload = next.workload and p.process = next.process and p.index = next.index
    and p.node <> next.node and p.leaving is null
"""

_LEAVE = """
update placement p set leaving = gone.revision, relieved_by = null
from unnest(%s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[])
    as gone(workload, process, index, node, revision)
where p.workload = gone.workload and p.process = gone.process and p.index = gone.index
    and p.node = gone.node and p.leaving is null
"""

_TAKE_OVER = """
delete from placement where (workload, process, index, node) in (
    select * from unnest(%s::text[], %s::text[], %s::bigint[], %s::text[])
)
"""

# What grows is taken from what is free, where the table's check watches over it.
_RESERVE = """
update node n set
    reserved_cpu_millis = n.reserved_cpu_millis + t.cpu,
    reserved_memory_mb = n.reserved_memory_mb + t.memory,
    reserved_disk_mb = n.reserved_disk_mb + t.disk,
    free_cpu_millis = case when t.cpu > 0 then n.free_cpu_millis - t.cpu
        else greatest(0, n.cpu_millis - n.reserved_cpu_millis - t.cpu) end,
    free_memory_mb = case when t.memory > 0 then n.free_memory_mb - t.memory
        else greatest(0, n.memory_mb - n.reserved_memory_mb - t.memory) end,
    free_disk_mb = case when t.disk > 0 then n.free_disk_mb - t.disk
        else greatest(0, n.disk_mb - n.reserved_disk_mb - t.disk) end,
    returned = n.returned + case when least(t.cpu, t.memory, t.disk) < 0 then 1 else 0 end
from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[]) as t(name, cpu, memory, disk)
where n.name = t.name
"""

_PROJECT = """
insert into projection as known (node, workload, slots, revision)
select * from unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[])
    as told(node, workload, slots, revision)
order by node, workload
on conflict (node, workload) do update set
    slots = excluded.slots, revision = excluded.revision, vacant = false
"""

_SETTLE = """
update workload w set
    revision = t.revision, in_force = case when t.held then w.in_force else w.spec end, due_at = null,
    failures = 0, blocked = t.blocked, blocked_returned = t.returned, told_generation = w.generation,
    bound = t.bound, claim = case when t.bound is not null then w.claim end,
    copy_after = case when t.held or w.in_force ->> 'state' = w.spec ->> 'state' then w.copy_after end
from unnest(%s::text[], %s::bigint[], %s::boolean[], %s::jsonb[], %s::bigint[], %s::text[])
    as t(id, revision, held, blocked, returned, bound)
where w.id = t.id
"""

_SET_ASIDE = """
update workload set
    failures = failures + 1, due_at = now() + least(%s, power(2, failures)) * interval '1 second'
where id = %s returning failures
"""


class Placing:
    def __init__(self, runtime: Runtime, project: Callable[[], None], *, pack: bool = False) -> None:
        self._runtime = runtime
        self._project = project
        self._roster = Roster(pack=pack)
        self._deciding = asyncio.Lock()
        self._writing = asyncio.Lock()

    async def place(self) -> bool:
        """True when there may be more to place."""
        await self._evacuate()
        outcomes: Sequence[bool | BaseException]
        outcomes = await asyncio.gather(self._place_batch(), return_exceptions=True)
        if outcomes[0] is True:
            # One is written while the next is decided.
            turns = iter(range(BATCHES))
            outcomes = await asyncio.gather(
                self._place_batches(turns), self._place_batches(turns), return_exceptions=True
            )
        broken = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        for error in broken:
            if isinstance(error, Unavailable) or not isinstance(error, Exception):
                raise error
        if not broken:
            return any(outcomes)
        self._runtime.log.warning("a batch broke, placing one by one", error=str(broken[0]))
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            due = await chosen(connection, None)
        for workload in due:
            try:
                await self._place_batch(only=workload)
            except Unavailable:
                raise
            except Exception as error:
                await self._set_aside(workload, error)
        return len(due) == BATCH

    async def _place_batches(self, turns: Iterator[int]) -> bool:
        more = True
        while more and next(turns, None) is not None:
            more = await self._place_batch()
        return more

    async def _evacuate(self) -> None:
        found = await self._runtime.store.read(_LEFT_ALONE)
        if not found:
            return
        nodes = {"nodes": [name for (name,) in found]}
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            row = await (await connection.execute(_EVACUATE, nodes)).fetchone()
            await connection.execute(_EVACUATED, nodes)
        if row is not None and row[0]:
            self._runtime.log.info("work is looked at again", workloads=row[0], **nodes)

    async def _place_batch(self, only: str | None = None) -> bool:
        roster = self._roster
        async with AsyncExitStack() as deciding, AsyncExitStack() as writing:
            await deciding.enter_async_context(self._deciding)
            try:
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    connection = await tx.connection()
                    due = await take(connection, only)
                    if not due:
                        return False
                    placed = await _placed(connection, list(due))
                    fleet = await roster.refresh(connection)
                    plans = [
                        make_plan(Demand.of(one.spec, one.bound), placed.get(id, ()), fleet)
                        for id, one in due.items()
                    ]
                    # Before anybody reads the fleet anew: what has returned by then may be room for these.
                    regions = {plan.demand.region for plan in plans if plan.blocked is not None}
                    returned = {region: fleet.returned(region) for region in regions}
                    await writing.enter_async_context(self._writing)
                    good = await self._holding(connection, plans, fleet)
                    stale = len(good) < len(plans)
                    if stale:
                        kept = {plan.demand.workload for plan in good}
                        roster.doubt(
                            p.node for plan in plans if plan.demand.workload not in kept for p in plan.puts
                        )
                    await deciding.aclose()
                    if good:
                        decided = [(due[plan.demand.workload], plan) for plan in good]
                        await self._write(tx, connection, decided, fleet, returned)
                roster.committed()
            except BaseException:
                # Whatever was not written was still planned.
                roster.forget_all()
                raise
        return stale or len(due) == BATCH

    async def _holding(
        self, connection: AsyncConnection[Any], plans: Sequence[Plan], fleet: Fleet
    ) -> list[Plan]:
        """The plans that still hold now that nobody else can change the nodes they use."""
        touched = {put.node for plan in plans for put in plan.puts}
        changed = await self._roster.lock(connection, touched)
        # A slot that was to return may have finished leaving before its node was locked.
        returning = list({plan.demand.workload for plan in plans for put in plan.puts if put.was != NOTHING})
        good = list(plans)
        if changed or returning:
            still = await _placed(connection, returning) if returning else {}
            known = touched - changed.keys()
            nodes = {name: node for name, node in changed.items() if node is not None}
            there = {
                workload: {(here.slot, here.node): here.room for here in placed}
                for workload, placed in still.items()
            }
            good = [p for p in plans if recheck(p, nodes, there.get(p.demand.workload, {}), known)]
        if len(good) < len(plans) or self._roster.fleet is not fleet:
            # Nobody counts as blocked for room that was taken in vain: by a stale plan, or by a batch before
            # that was not written after all.
            good = [plan for plan in good if plan.blocked is None]
        return good

    async def _write(
        self,
        tx: Tx,
        connection: AsyncConnection[Any],
        decided: Sequence[tuple[Due, Plan]],
        fleet: Fleet,
        returned: Mapping[str, int],
    ) -> None:
        plans = [plan for _, plan in decided]
        revisions = {due.spec.id: due.revision + 1 for due, _ in decided}
        told = await _told(connection, decided, revisions)
        named = {workload for _, workload, *_ in told}
        taken = _taken(plans)
        # Where a slot has become smaller, capacity has returned: the row counts that, memory does not.
        self._roster.doubt(name for name, room in taken.items() if min(room) < 0)
        await self._roster.writing(connection)
        ids = [due.spec.id for due, _ in decided]
        settled = (
            _array(ids),
            _array(
                [
                    revisions[id] if id in named else due.revision
                    for id, (due, _) in zip(ids, decided, strict=True)
                ]
            ),
            [plan.held for plan in plans],
            [None if plan.blocked is None else Jsonb(dict(plan.blocked)) for plan in plans],
            [None if plan.blocked is None else returned[plan.demand.region] for plan in plans],
            [due.bound if plan.held else plan.demand.bound for due, plan in decided],
        )
        # Sent without a pause, so that the database is busy with one while the next one is made ready.
        async with connection.pipeline():
            await _write_slots(connection, plans, revisions)
            if taken:
                sizes = (_array([room[i] for room in taken.values()]) for i in range(3))
                await connection.execute(_RESERVE, (_array(taken), *sizes), prepare=True)
            if told:
                columns = [_array([row[i] for row in told]) for i in range(4)]
                await connection.execute(_PROJECT, columns, prepare=True)
            await connection.execute(_SETTLE, settled, prepare=True)
            for due, plan in decided:
                self._tell(tx, due, plan, fleet)
        slots = sum(len(plan.puts) for plan in plans)
        self._runtime.log.info("placed", workloads=len(decided), slots=slots)
        if told:
            tx.after_commit(self._project)

    def _tell(self, tx: Tx, due: Due, plan: Plan, fleet: Fleet) -> None:
        spec, log = due.spec, self._runtime.log

        def heard(name: str) -> bool:
            node = fleet.node(name)
            return node is not None and node.online

        new = due.told_generation < due.generation
        for removal in (*plan.removals, *plan.relieved):
            log.info(
                "slot leaves", workload=spec.id, slot=removal.slot, node=removal.node, why=removal.because
            )
        if plan.blocked is not None and plan.unserved:
            if new or plan.blocked != due.blocked:
                log.warning("blocked", workload=spec.id, generation=due.generation, reasons=plan.blocked)
                tx.publish(
                    PlacementBlocked(
                        workload=spec.id,
                        organization=spec.organization,
                        generation=due.generation,
                        deployment=spec.deployment,
                        reasons=dict(plan.blocked),
                        lost=tuple(sorted(name for name in set(plan.slots.values()) if not heard(name))),
                    )
                )
        elif spec.wants_instances and (new or due.blocked is not None or plan.puts or plan.removals):
            nodes = tuple(sorted(set(plan.slots.values())))
            tx.publish(
                PlacementDecided(
                    workload=spec.id,
                    organization=spec.organization,
                    generation=due.generation,
                    deployment=spec.deployment,
                    nodes=nodes,
                    lost=tuple(sorted({r.node for r in plan.removals if r.because == OFFLINE})),
                )
            )

    async def _set_aside(self, workload: str, error: Exception) -> None:
        """What breaks by itself is tried again later and later; the first time an operator hears of it."""
        self._runtime.log.error("could not be placed", workload=workload, exc_info=error)
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            row = await (await connection.execute(_SET_ASIDE, (LONGEST_WAIT, workload))).fetchone()
            if row is not None and row[0] == 1:
                tx.publish(
                    AlertRaised(
                        service=self._runtime.name,
                        severity="critical",
                        title="A workload could not be placed",
                        details={"workload": workload, "error": str(error)[:500]},
                    )
                )


async def _placed(connection: AsyncConnection[Any], workloads: list[str]) -> dict[str, list[Placed]]:
    cursor = await connection.execute(_PLACED, (workloads,), prepare=False)
    placed: dict[str, list[Placed]] = defaultdict(list)
    for workload, process, index, node, cpu, memory, disk, leaving, relieved_by in await cursor.fetchall():
        placed[workload].append(Placed((process, index), node, Room(cpu, memory, disk), leaving, relieved_by))
    return placed


def _taken(plans: Sequence[Plan]) -> dict[str, list[int]]:
    """By how much the reservations of nodes change."""
    taken: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for plan in plans:
        for put in plan.puts:
            total, new, old = taken[put.node], put.room, put.was
            total[0] += new[0] - old[0]
            total[1] += new[1] - old[1]
            total[2] += new[2] - old[2]
    return {name: room for name, room in taken.items() if any(room)}


async def _write_slots(
    connection: AsyncConnection[Any], plans: Sequence[Plan], revisions: Mapping[str, int]
) -> None:
    puts = [(plan.demand.workload, put) for plan in plans for put in plan.puts]
    leaves = [
        (plan.demand.workload, *removal.slot, removal.node, revisions[plan.demand.workload])
        for plan in plans
        for removal in plan.removals
    ]
    # Before the puts: a slot has one place at a time.
    if leaves:
        await connection.execute(_LEAVE, _columns(leaves, 5), prepare=True)
    moved = [
        (plan.demand.workload, *put.slot, put.node)
        for plan in plans
        if plan.relieved or plan.staying
        for put in plan.puts
        if not put.stays
    ]
    if moved:
        await connection.execute(_RELIEVE, _columns(moved, 4), prepare=True)
    over = [(workload, *put.instead, put.node) for workload, put in puts if put.instead is not None]
    if over:
        await connection.execute(_TAKE_OVER, _columns(over, 4), prepare=True)
    if puts:
        columns = (
            _array([workload for workload, _ in puts]),
            [put.slot[0] for _, put in puts],
            _array([put.slot[1] for _, put in puts]),
            _array([put.node for _, put in puts]),
            *(_array([put.room[i] for _, put in puts]) for i in range(3)),
        )
        await connection.execute(_PUT, columns, prepare=True)


async def _told(
    connection: AsyncConnection[Any], decided: Sequence[tuple[Due, Plan]], revisions: Mapping[str, int]
) -> list[tuple[str, str, int, int]]:
    """Which nodes have to be told of which workloads: how many slots there, and the revision."""
    changed = {
        due.spec.id for due, plan in decided if not plan.held and due.generation_in_force != due.generation
    }
    known: dict[str, set[str]] = defaultdict(set)
    # What was never told of has nobody who was told.
    before = [due.spec.id for due, _ in decided if due.revision and due.spec.id in changed]
    if before:
        cursor = await connection.execute(_TOLD_NODES, (before,), prepare=False)
        for workload, node in await cursor.fetchall():
            known[workload].add(node)
    rows: list[tuple[str, str, int, int]] = []
    for due, plan in decided:
        workload = due.spec.id
        count: dict[str, int] = {}
        for node in (*plan.slots.values(), *plan.staying):
            count[node] = count.get(node, 0) + 1
        nodes = {put.node for put in plan.puts}
        if plan.removals:
            nodes.update(removal.node for removal in plan.removals)
        if workload in changed:
            nodes.update(count, known.get(workload, ()))
        rows += [(node, workload, count.get(node, 0), revisions[workload]) for node in nodes]
    return rows


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]


def _array(values: Iterable[str | int]) -> str:
    """As Postgres reads it: of ids, names of nodes and numbers, in which nothing is to be escaped. The driver
    looks at each of them by itself, and takes longer for that than Postgres for the whole statement."""
    text = '","'.join(map(str, values))
    return f'{{"{text}"}}' if text else "{}"
