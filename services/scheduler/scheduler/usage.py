"""What each instance uses, as its node last said: a row a node, apart from what placing locks.

Told to whoever scales an app or checks whether it fits a smaller plan. A few minutes old at most, or nothing.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from contracts.queries import InstanceUse, UsageOf, WorkloadUsage
from contracts.reports import NodeHeartbeat, VolumeUse
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from runtime.runtime import Runtime

from scheduler import traffic

# Said twice a minute; what is older says nothing about now.
_FRESH = timedelta(seconds=100)

_RECORD = """
insert into node_usage as n (node, at, instances, volumes)
select * from unnest(%s::text[], %s::timestamptz[], %s::jsonb[], %s::jsonb[])
    as t(node, at, instances, volumes) order by node
on conflict (node) do update set
    at = excluded.at, instances = excluded.instances, volumes = excluded.volumes
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


async def record(connection: AsyncConnection[Any], reports: Sequence[NodeHeartbeat]) -> None:
    said = [r for r in reports if r.volumes or any(i.usage is not None for i in r.instances)]
    if said:
        columns = (
            [r.node for r in said],
            [r.at for r in said],
            [Jsonb(_by_workload(r)) for r in said],
            [Jsonb(_volumes(r)) for r in said],
        )
        await connection.execute(_RECORD, columns, prepare=True)


def _by_workload(report: NodeHeartbeat) -> dict[str, dict[str, list[object]]]:
    used: dict[str, dict[str, list[object]]] = {}
    for instance in report.instances:
        if (usage := instance.usage) is not None:
            used.setdefault(instance.workload, {})[instance.instance] = [
                instance.slot.process,
                instance.slot.index,
                usage.cpu_millis,
                usage.memory_mb,
            ]
    return used


def _volumes(report: NodeHeartbeat) -> dict[str, dict[str, list[int]]]:
    held: dict[str, dict[str, list[int]]] = {}
    for one in report.volumes:
        held.setdefault(one.workload, {})[one.volume] = [one.used_mb, one.size_mb]
    return held


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
