"""What has left a node gives its room back: a slot told to leave reserves it until nothing of it runs.

Invariant: room is given back once, by whoever deletes the leaving placement. An event says it at once; the
node's whole report says it again, so a lost event heals. The last one at a workload's home keeps the room of
its volumes, since they stay there: it goes when they do, or gives that room to what starts there again.
Called for `instance.stopped` and by `nodes`.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

from contracts.events import InstanceStopped
from contracts.reports import NodeHeartbeat
from psycopg import AsyncConnection
from runtime.store import Tx

# workload, process, index, node
Departure: TypeAlias = tuple[str, str, int, str]

# A node may have sent its report before it read what it was told, and what drains is not in it: it counts
# as an answer only after this long and the workload's own grace.
SETTLED = timedelta(seconds=60)

# An instance that is stopped for another reason may well be started again in the same slot.
_LEFT = ("stopped", "deleted", "moved")

# What each of them keeps; who keeps that already has left before.
_LEAVING = """
select p.workload, p.process, p.index, p.node, kept.disk_mb from placement p
join unnest(%s::text[], %s::text[], %s::bigint[], %s::text[]) as gone(workload, process, index, node)
    on p.workload = gone.workload and p.process = gone.process and p.index = gone.index and p.node = gone.node
join workload w on w.id = p.workload
cross join lateral (
    select case when w.bound = p.node and w.in_force ->> 'state' <> 'deleted' and not exists (
        select from placement o where o.workload = p.workload and o.node = p.node
            and (o.leaving is null or (o.process, o.index) < (p.process, p.index))
    ) then (
        select coalesce(sum((volume ->> 'size_mb')::bigint), 0)
        from jsonb_array_elements(w.in_force -> 'volumes') as volume
    ) else 0 end as disk_mb
) kept
where p.leaving is not null
    and (kept.disk_mb = 0 or (p.cpu_millis, p.memory_mb) <> (0, 0) or p.disk_mb > kept.disk_mb)
"""

_LOCK = "select name from node where name = any(%s) order by name for no key update"

_RELEASE = """
with gone as (
    select p.workload, p.process, p.index, p.node, p.cpu_millis, p.memory_mb, p.disk_mb,
        least(p.disk_mb, gone.kept_mb) as kept_mb
    from placement p join unnest(%s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[])
        as gone(workload, process, index, node, kept_mb)
        on p.workload = gone.workload and p.process = gone.process and p.index = gone.index
        and p.node = gone.node
    where p.leaving is not null for update of p
), kept as (
    update placement p set cpu_millis = 0, memory_mb = 0, disk_mb = gone.kept_mb from gone
    where p.workload = gone.workload and p.process = gone.process and p.index = gone.index
        and p.node = gone.node and gone.kept_mb > 0
), deleted as (
    delete from placement p using gone
    where p.workload = gone.workload and p.process = gone.process and p.index = gone.index
        and p.node = gone.node and gone.kept_mb = 0
), given as (
    select node, sum(cpu_millis)::bigint as cpu, sum(memory_mb)::bigint as memory,
        sum(disk_mb - kept_mb)::bigint as disk
    from gone group by node
)
update node n set
    reserved_cpu_millis = n.reserved_cpu_millis - given.cpu,
    reserved_memory_mb = n.reserved_memory_mb - given.memory,
    reserved_disk_mb = n.reserved_disk_mb - given.disk,
    free_cpu_millis = greatest(0, n.cpu_millis - n.reserved_cpu_millis + given.cpu),
    free_memory_mb = greatest(0, n.memory_mb - n.reserved_memory_mb + given.memory),
    free_disk_mb = greatest(0, n.disk_mb - n.reserved_disk_mb + given.disk),
    returned = n.returned + 1
from given where n.name = given.node
"""

_OVERDUE = """
select p.workload, p.process, p.index, p.node from placement p
join projection told on told.node = p.node and told.workload = p.workload
join workload w on w.id = p.workload
where p.node = any(%s) and p.leaving <= told.written
    and told.written_at + (w.in_force ->> 'grace_seconds')::float8 * interval '1 second' < %s
"""

_EMPTY = """
select node, workload, revision from projection
where node = any(%s) and slots = 0 and not vacant and written = revision and written_at < %s
"""

_VACANT = """
with chosen as (
    select p.node, p.workload from projection p
    join unnest(%s::text[], %s::text[], %s::bigint[]) as empty(node, workload, revision)
        on p.node = empty.node and p.workload = empty.workload and p.revision = empty.revision
    order by p.node, p.workload for no key update of p
)
update projection p set vacant = true from chosen
where p.node = chosen.node and p.workload = chosen.workload
"""


class Departures:
    def __init__(self, place: Callable[[], None]) -> None:
        self._place = place

    async def stopped(self, events: Sequence[InstanceStopped], tx: Tx) -> None:
        await self._release(
            [(e.workload, e.slot.process, e.slot.index, e.node) for e in events if e.reason in _LEFT], tx
        )

    async def reported(self, reports: Iterable[NodeHeartbeat], now: datetime, tx: Tx) -> None:
        """What a node was told to leave, has had the time to leave, and does not report, is gone."""
        slots: set[Departure] = set()
        workloads: set[tuple[str, str]] = set()
        nodes: list[str] = []
        for report in reports:
            nodes.append(report.node)
            for one in report.instances:
                slots.add((one.workload, one.slot.process, one.slot.index, report.node))
                workloads.add((report.node, one.workload))
        connection = await tx.connection()
        cursor = await connection.execute(_OVERDUE, (nodes, now - SETTLED), prepare=True)
        await self._release([row for row in await cursor.fetchall() if row not in slots], tx)
        cursor = await connection.execute(_EMPTY, (nodes, now - SETTLED), prepare=True)
        empty = [row for row in await cursor.fetchall() if row[:2] not in workloads]
        if empty:
            await connection.execute(_VACANT, _columns(empty), prepare=True)

    async def _release(self, gone: Sequence[Departure], tx: Tx) -> None:
        if not gone:
            return
        connection = await tx.connection()
        # Two instances of a slot may end together, as when an app is deleted during a rollout.
        gone = list(dict.fromkeys(gone))
        # Most stopped instances left no slot: nothing is locked for them.
        leaving = await self._leaving(connection, gone)
        if not leaving:
            return
        await connection.execute(_LOCK, (list({node for *_, node, _ in leaving}),), prepare=True)
        await connection.execute(_RELEASE, _columns(leaving), prepare=True)
        tx.after_commit(self._place)

    @staticmethod
    async def _leaving(
        connection: AsyncConnection[Any], gone: Sequence[Departure]
    ) -> list[tuple[*Departure, int]]:
        cursor = await connection.execute(_LEAVING, _columns(gone), prepare=True)
        return await cursor.fetchall()


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
