"""Carries plans out: takes workloads that are due, plans them against the fleet, writes what still holds.

Invariant: a plan is checked again on locked rows before it is written, so schedulers that work at once never
promise the same room twice. Locks are taken in one order: workloads, nodes by name, placements, projections.
Blocked workloads are taken again as soon as capacity has returned to their region. Runs as a loop of `app`.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contracts.errors import Unavailable
from contracts.events import AlertRaised, PlacementBlocked, PlacementDecided
from contracts.workload import WorkloadSpec
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

from scheduler.fleet import NOTHING, Fleet, Node, Room
from scheduler.plan import Plan, make_plan, recheck
from scheduler.reconcile import Demand, Placed

BATCH = 500
LONGEST_WAIT = 600

_DUE = """
select id from workload where due_at <= now()
union all
select w.id from workload w
    join (select region, sum(returned) as returned from node group by region) r on r.region = w.region
    where w.blocked is not null and w.due_at is null and w.blocked_returned <> r.returned
"""

_TAKE = f"""
select id, generation, revision, spec::text, in_force ->> 'generation', blocked, told_generation
from workload where id in ({_DUE}) and (%(only)s::text is null or id = %(only)s)
order by due_at, id limit %(limit)s for no key update skip locked
"""

_PLACED = """
select workload, process, index, node, cpu_millis, memory_mb, disk_mb, leaving is not null
from placement where workload = any(%s) order by workload, process, index, node
"""

_NODE_COLUMNS = """
name, region, status = 'online', cpu_millis, memory_mb, disk_mb,
reserved_cpu_millis, reserved_memory_mb, reserved_disk_mb, free_cpu_millis, free_memory_mb, free_disk_mb,
used_cpu_millis, used_memory_mb, used_disk_mb, returned
"""

_NODES = f"select {_NODE_COLUMNS} from node where region = any(%s) or name = any(%s)"

_LOCK = f"select {_NODE_COLUMNS} from node where name = any(%s) order by name for no key update"

_TOLD_NODES = "select workload, node from projection where workload = any(%s)"

_PUT = """
insert into placement (workload, process, index, node, cpu_millis, memory_mb, disk_mb)
select * from unnest(
    %s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[]
)
on conflict (workload, process, index, node) do update set
    cpu_millis = excluded.cpu_millis, memory_mb = excluded.memory_mb, disk_mb = excluded.disk_mb,
    leaving = null
"""

_LEAVE = """
update placement p set leaving = gone.revision
from unnest(%s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[])
    as gone(workload, process, index, node, revision)
where p.workload = gone.workload and p.process = gone.process and p.index = gone.index
    and p.node = gone.node and p.leaving is null
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
    failures = 0, blocked = t.blocked, blocked_returned = t.returned, told_generation = w.generation
from unnest(%s::text[], %s::bigint[], %s::boolean[], %s::jsonb[], %s::bigint[])
    as t(id, revision, held, blocked, returned)
where w.id = t.id
"""

_SET_ASIDE = """
update workload set
    failures = failures + 1, due_at = now() + least(%s, power(2, failures)) * interval '1 second'
where id = %s returning failures
"""


@dataclass(frozen=True, slots=True)
class Due:
    spec: WorkloadSpec
    generation: int
    revision: int
    generation_in_force: int | None
    blocked: dict[str, str] | None
    told_generation: int


class Placing:
    def __init__(self, runtime: Runtime, project: Callable[[], None]) -> None:
        self._runtime = runtime
        self._project = project

    async def place(self) -> bool:
        """True when there may be more to place."""
        try:
            return await self._place_batch()
        except Unavailable:
            raise
        except Exception as error:
            self._runtime.log.warning("a batch broke, placing one by one", error=str(error))
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            due = await (await connection.execute(f"{_DUE} limit %s", (BATCH,))).fetchall()
        for (workload,) in due:
            try:
                await self._place_batch(only=workload)
            except Unavailable:
                raise
            except Exception as error:
                await self._set_aside(workload, error)
        return len(due) == BATCH

    async def _place_batch(self, only: str | None = None) -> bool:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            cursor = await connection.execute(_TAKE, {"only": only, "limit": BATCH}, prepare=True)
            due = {
                id: Due(
                    WorkloadSpec.model_validate_json(spec),
                    generation,
                    revision,
                    None if in_force is None else int(in_force),
                    blocked,
                    told,
                )
                for id, generation, revision, spec, in_force, blocked, told in await cursor.fetchall()
            }
            if not due:
                return False
            placed = await _placed(connection, list(due))
            fleet = await _fleet(connection, due, placed)
            plans = [make_plan(Demand.of(one.spec), placed[id], fleet) for id, one in due.items()]
            good = await _holding(connection, plans)
            stale = len(good) < len(plans)
            if stale:
                # Others may count as blocked only for room that a stale plan had taken in vain.
                good = [plan for plan in good if plan.blocked is None]
            if good:
                await self._write(tx, connection, [(due[p.demand.workload], p) for p in good], fleet)
        return stale or len(due) == BATCH

    async def _write(
        self, tx: Tx, connection: AsyncConnection[Any], decided: Sequence[tuple[Due, Plan]], fleet: Fleet
    ) -> None:
        revisions = {due.spec.id: due.revision + 1 for due, _ in decided}
        await _write_slots(connection, [plan for _, plan in decided], revisions)
        told = await _project(connection, decided, revisions)
        settled = [
            (
                due.spec.id,
                revisions[due.spec.id] if due.spec.id in told else due.revision,
                plan.held,
                None if plan.blocked is None else Jsonb(dict(plan.blocked)),
                None if plan.blocked is None else fleet.returned(plan.demand.region),
            )
            for due, plan in decided
        ]
        await connection.execute(_SETTLE, _columns(settled, 5), prepare=True)
        for due, plan in decided:
            self._tell(tx, due, plan)
        if told:
            tx.after_commit(self._project)

    def _tell(self, tx: Tx, due: Due, plan: Plan) -> None:
        spec, log = due.spec, self._runtime.log
        new = due.told_generation < due.generation
        for removal in plan.removals:
            log.info(
                "slot leaves", workload=spec.id, slot=removal.slot, node=removal.node, why=removal.because
            )
        if plan.blocked is not None:
            if new or plan.blocked != due.blocked:
                log.warning("blocked", workload=spec.id, generation=due.generation, reasons=plan.blocked)
                tx.publish(
                    PlacementBlocked(
                        workload=spec.id,
                        organization=spec.organization,
                        generation=due.generation,
                        deployment=spec.deployment,
                        reasons=dict(plan.blocked),
                    )
                )
        elif spec.wants_instances and (new or due.blocked is not None or plan.puts or plan.removals):
            nodes = tuple(sorted(set(plan.slots.values())))
            log.info("placed", workload=spec.id, generation=due.generation, nodes=nodes)
            tx.publish(
                PlacementDecided(
                    workload=spec.id,
                    organization=spec.organization,
                    generation=due.generation,
                    deployment=spec.deployment,
                    nodes=nodes,
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
    cursor = await connection.execute(_PLACED, (workloads,), prepare=True)
    placed: dict[str, list[Placed]] = defaultdict(list)
    for workload, process, index, node, cpu, memory, disk, leaving in await cursor.fetchall():
        placed[workload].append(Placed((process, index), node, Room(cpu, memory, disk), leaving))
    return placed


async def _fleet(
    connection: AsyncConnection[Any], due: Mapping[str, Due], placed: Mapping[str, Sequence[Placed]]
) -> Fleet:
    regions = list({one.spec.region for one in due.values()})
    hosts = list({here.node for slots in placed.values() for here in slots})
    cursor = await connection.execute(_NODES, (regions, hosts), prepare=True)
    return Fleet([_node(row) for row in await cursor.fetchall()])


def _node(row: Sequence[Any]) -> Node:
    name, region, online, *numbers, returned = row
    capacity, reserved, free, used = (Room(*numbers[i : i + 3]) for i in (0, 3, 6, 9))
    return Node(name, region, online, capacity, reserved, free, used, returned)


async def _holding(connection: AsyncConnection[Any], plans: Sequence[Plan]) -> list[Plan]:
    """The plans that still hold now that nobody else can change the nodes they use."""
    touched = list({put.node for plan in plans for put in plan.puts})
    cursor = await connection.execute(_LOCK, (touched,), prepare=True)
    nodes = {row[0]: _node(row) for row in await cursor.fetchall()}
    # A slot that was to return may have finished leaving before its node was locked.
    returning = list({plan.demand.workload for plan in plans for put in plan.puts if put.was != NOTHING})
    still = await _placed(connection, returning) if returning else {}
    return [
        plan
        for plan in plans
        if recheck(plan, nodes, {(p.slot, p.node) for p in still.get(plan.demand.workload, ())})
    ]


async def _write_slots(
    connection: AsyncConnection[Any], plans: Sequence[Plan], revisions: Mapping[str, int]
) -> None:
    puts = [(plan.demand.workload, *put.slot, put.node, *put.room) for plan in plans for put in plan.puts]
    leaves = [
        (plan.demand.workload, *removal.slot, removal.node, revisions[plan.demand.workload])
        for plan in plans
        for removal in plan.removals
    ]
    taken: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for plan in plans:
        for put in plan.puts:
            for i, (new, old) in enumerate(zip(put.room, put.was, strict=True)):
                taken[put.node][i] += new - old
    if leaves:  # before the puts: a slot has one place at a time
        await connection.execute(_LEAVE, _columns(leaves, 5), prepare=True)
    if puts:
        await connection.execute(_PUT, _columns(puts, 7), prepare=True)
        reserved = [(name, *room) for name, room in taken.items() if any(room)]
        await connection.execute(_RESERVE, _columns(reserved, 4), prepare=True)


async def _project(
    connection: AsyncConnection[Any], decided: Sequence[tuple[Due, Plan]], revisions: Mapping[str, int]
) -> set[str]:
    """Notes which nodes have to be told; gives the workloads for which there are any."""
    changed = [
        due.spec.id for due, plan in decided if not plan.held and due.generation_in_force != due.generation
    ]
    known: dict[str, set[str]] = defaultdict(set)
    cursor = await connection.execute(_TOLD_NODES, (changed,), prepare=True)
    for workload, node in await cursor.fetchall():
        known[workload].add(node)
    rows = []
    for due, plan in decided:
        workload = due.spec.id
        count: dict[str, int] = defaultdict(int)
        for node in plan.slots.values():
            count[node] += 1
        nodes = {put.node for put in plan.puts} | {removal.node for removal in plan.removals}
        if workload in changed:
            nodes |= known[workload] | set(count)
        rows += [(node, workload, count[node], revisions[workload]) for node in nodes]
    if rows:
        await connection.execute(_PROJECT, _columns(rows, 4), prepare=True)
    return {workload for _, workload, _, _ in rows}


def _columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    return [[row[i] for row in rows] for i in range(width)]
