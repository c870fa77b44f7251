"""Answers about the data of workloads: where it is, what there is of it elsewhere, and what is on its way."""

from contracts.copies import Copying, NodeCopying, WorkloadCopies
from contracts.queries import CopiesOf
from runtime.runtime import Runtime
from runtime.store import PLATFORM, scoped

_HOME = scoped("select w.bound from workload w where w.id = %s and scope.organization is not null")

_NEWEST = """
select node, taken_at from copy
where workload = %s and taken_at is not null and not dropping and not missing
order by taken_at desc, node limit 1
"""

_COLUMNS = "t.why, t.source, t.target, t.done_mb, t.total_mb, t.sent_mb, t.since, t.mode = 'final', t.words"

_UNDER_WAY = f"select {_COLUMNS} from transfer t where t.workload = %s"

_OF_NODE = scoped(f"""
select t.workload, w.organization, {_COLUMNS} from transfer t join workload w on w.id = t.workload
where (t.source = %s or t.target = %s) and scope.organization is not null
order by t.since, t.workload limit 200
""")

_NAMES = ("why", "source", "target", "done_mb", "total_mb", "sent_mb", "since", "last", "words")


async def of_workload(runtime: Runtime, query: CopiesOf) -> WorkloadCopies:
    homes = await runtime.store.read(_HOME, (PLATFORM, query.workload))
    newest = await runtime.store.read(_NEWEST, (query.workload,))
    under_way = await runtime.store.read(_UNDER_WAY, (query.workload,))
    return WorkloadCopies(
        home=homes[0][0] if homes else None,
        newest=newest[0][1] if newest else None,
        on=newest[0][0] if newest else None,
        copying=Copying(**dict(zip(_NAMES, under_way[0], strict=True))) if under_way else None,
    )


async def of_node(runtime: Runtime, node: str) -> tuple[NodeCopying, ...]:
    rows = await runtime.store.read(_OF_NODE, (PLATFORM, node, node))
    return tuple(
        NodeCopying(workload=workload, organization=organization, **dict(zip(_NAMES, row, strict=True)))
        for workload, organization, *row in rows
    )
