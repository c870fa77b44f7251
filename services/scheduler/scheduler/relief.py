"""A slot that moves while it serves: its old instance goes when the new one has come to life, and not before.

Invariant: whoever is relieved is told to leave with a new revision, in the transaction that notes it. An
event says at once that the slot runs in its new place, the node's whole report says it again. Called for
`instance.started` and by `nodes`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from contracts.events import InstanceStarted
from contracts.reports import NodeHeartbeat
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

# workload, process, index, node
Arrival: TypeAlias = tuple[str, str, int, str]

_RELIEVED = """
select distinct p.workload from placement p
join unnest(%s::text[], %s::text[], %s::bigint[], %s::text[]) as up(workload, process, index, node)
    on p.workload = up.workload and p.process = up.process and p.index = up.index and p.relieved_by = up.node
where p.leaving is null
"""

_ANY = "select 1 from placement where relieved_by = any(%s) and leaving is null limit 1"

_LOCK = "select id from workload where id = any(%s) order by id for no key update"

_LEAVE = """
update placement p set leaving = w.revision + 1, relieved_by = null
from workload w, unnest(%s::text[], %s::text[], %s::bigint[], %s::text[])
    as up(workload, process, index, node)
where p.workload = up.workload and p.process = up.process and p.index = up.index and p.relieved_by = up.node
    and p.leaving is null and w.id = p.workload and w.id = any(%s)
returning p.node, p.workload, p.leaving
"""

_RAISE = """
update workload w set revision = told.revision
from unnest(%s::text[], %s::bigint[]) as told(id, revision) where w.id = told.id
"""

_PROJECT = """
insert into projection (node, workload, slots, revision)
select node, workload, (select count(*) from placement p
    where p.workload = told.workload and p.node = told.node and p.leaving is null), revision
from unnest(%s::text[], %s::text[], %s::bigint[]) as told(node, workload, revision)
order by node, workload
on conflict (node, workload) do update set
    slots = excluded.slots, revision = excluded.revision, vacant = false
"""


class Relief:
    def __init__(self, runtime: Runtime, project: Callable[[], None]) -> None:
        self._runtime = runtime
        self._project = project

    async def started(self, events: Sequence[InstanceStarted], tx: Tx) -> None:
        await self._relieve([(e.workload, e.slot.process, e.slot.index, e.node) for e in events], tx)

    async def reported(self, reports: Sequence[NodeHeartbeat]) -> None:
        # Mostly nothing moves, and what runs everywhere need not be said to the database.
        if not await self._runtime.store.read(_ANY, ([report.node for report in reports],)):
            return
        up = [(i.workload, i.slot.process, i.slot.index, r.node) for r in reports for i in r.instances]
        async with self._runtime.store.transaction(PLATFORM) as tx:
            await self._relieve(up, tx)

    async def _relieve(self, up: Sequence[Arrival], tx: Tx) -> None:
        if not up:
            return
        connection = await tx.connection()
        columns = _columns(up)
        cursor = await connection.execute(_RELIEVED, columns, prepare=True)
        workloads = [workload for (workload,) in await cursor.fetchall()]
        if not workloads:
            return
        await connection.execute(_LOCK, (workloads,), prepare=True)
        cursor = await connection.execute(_LEAVE, (*columns, workloads), prepare=True)
        left = sorted(set(await cursor.fetchall()))
        if not left:
            return
        revisions = {workload: revision for _, workload, revision in left}
        await connection.execute(_RAISE, (list(revisions), list(revisions.values())), prepare=True)
        await connection.execute(_PROJECT, _columns(left), prepare=True)
        tx.after_commit(self._project)


def _columns(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
