"""What each instance uses and which workloads answer, as their nodes last said: a row a node, apart from what
placing locks.

Told to whoever scales an app, checks whether it fits a smaller plan, or tells of one that is down. A few
minutes old at most, or nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import orjson
from contracts.queries import InstanceUse, SilentAfter, SilentWorkloads, UsageOf, WorkloadUsage
from contracts.reports import NodeHeartbeat, VolumeUse
from psycopg import AsyncConnection
from runtime.runtime import Runtime

from scheduler import traffic

# Said twice a minute; what is older says nothing about now.
_FRESH = timedelta(seconds=100)
# The process that requests go to.
ROUTED = "web"

# One document: in an array each of many would have its quotes escaped, which takes longer than all the rest.
_RECORD = """
insert into node_usage as n (node, at, instances, volumes, answering)
select t.node, %s, t.instances, t.volumes, string_to_array(t.answering, ' ')
from jsonb_to_recordset(%s::jsonb) as t(node text, instances jsonb, volumes jsonb, answering text)
order by t.node
on conflict (node) do update set
    at = excluded.at, instances = excluded.instances, volumes = excluded.volumes,
    answering = excluded.answering
"""

_OF = """
select u.node, u.at, used.key, used.value
from (select distinct node from placement where workload = %s) p
join node_usage u on u.node = p.node, jsonb_each(u.instances -> %s) as used
where u.at > %s order by used.key
"""

_VOLUMES = """
select held.key, held.value
from (select distinct node from placement where workload = %s) p
join node_usage u on u.node = p.node, jsonb_each(u.volumes -> %s) as held
where u.at > %s order by held.key
"""


_SILENT = """
with answering as (select unnest(u.answering) as workload from node_usage u where u.at > %s)
select distinct p.workload from placement p
where p.process = %s and p.leaving is null and (%s::text is null or p.workload > %s)
    and not exists (select from answering a where a.workload = p.workload)
order by p.workload limit %s
"""
_PAGE = 1000


async def record(connection: AsyncConnection[Any], reports: Sequence[NodeHeartbeat], now: datetime) -> None:
    """`now`: when they were heard, by the clock that is asked how old they are; a node's own may be wrong."""
    said = [r for r in reports if r.volumes or r.instances]
    if said:
        rows = [
            {
                "node": r.node,
                "instances": _by_workload(r),
                "volumes": _volumes(r),
                "answering": " ".join(_answering(r)),
            }
            for r in said
        ]
        await connection.execute(_RECORD, (now, orjson.dumps(rows).decode()), prepare=True)


def _by_workload(report: NodeHeartbeat) -> dict[str, dict[str, list[object]]]:
    used: dict[str, dict[str, list[object]]] = {}
    for instance in report.instances:
        # Also of one whose use is not known: its workload runs here.
        known = used.setdefault(instance.workload, {})
        if (usage := instance.usage) is not None:
            known[instance.instance] = [
                instance.slot.process,
                instance.slot.index,
                usage.cpu_millis,
                usage.memory_mb,
            ]
    return used


def _answering(report: NodeHeartbeat) -> list[str]:
    return sorted({i.workload for i in report.instances if i.healthy and i.slot.process == ROUTED})


def _volumes(report: NodeHeartbeat) -> dict[str, dict[str, list[int]]]:
    held: dict[str, dict[str, list[int]]] = {}
    for one in report.volumes:
        held.setdefault(one.workload, {})[one.volume] = [one.used_mb, one.size_mb]
    return held


async def silent(runtime: Runtime, query: SilentAfter) -> SilentWorkloads:
    since = runtime.clock.now() - _FRESH
    rows = await runtime.store.read(_SILENT, (since, ROUTED, query.after, query.after, _PAGE))
    found = tuple(row[0] for row in rows)
    return SilentWorkloads(workloads=found, next=found[-1] if len(found) == _PAGE else None)


async def answer(runtime: Runtime, query: UsageOf) -> WorkloadUsage:
    since = runtime.clock.now() - _FRESH
    rows = await runtime.store.read(_OF, (query.workload, query.workload, since))
    held = await runtime.store.read(_VOLUMES, (query.workload, query.workload, since))
    return WorkloadUsage(
        instances=tuple(
            InstanceUse(
                instance=instance,
                node=node,
                process=process,
                index=index,
                cpu_millis=cpu,
                memory_mb=memory,
                at=at,
            )
            for node, at, instance, (process, index, cpu, memory) in rows
        ),
        traffic=await traffic.of(runtime, query.workload),
        volumes=tuple(
            VolumeUse(volume=volume, workload=query.workload, used_mb=used, size_mb=size)
            for volume, (used, size) in held
        ),
    )
