"""Answers about nodes and regions, for the administrator's list and for the customer's choice of a region."""

from contracts.queries import AllNodes, NodeInfo, Nodes, RegionInfo, Regions, RegionsWithRoom
from contracts.reports import NodeCapacity, NodeUsage
from runtime.runtime import Runtime

from scheduler.settings import SchedulerSettings

_NODES = """
select name, region, status, last_seen_at, engine, instances, cpu_millis, memory_mb, disk_mb,
    reserved_cpu_millis, reserved_memory_mb, reserved_disk_mb,
    used_cpu_millis, used_memory_mb, used_disk_mb, load
from node order by name
"""

_REGIONS = """
select region, bool_or(
    status = 'online' and free_cpu_millis >= %s and free_memory_mb >= %s and free_disk_mb >= %s
) from node group by region order by region
"""


async def all_nodes(runtime: Runtime, _: AllNodes) -> Nodes:
    nodes = []
    for row in await runtime.store.read(_NODES):
        name, region, status, seen, engine, instances, *numbers, load = row
        capacity, allocated, used = (
            dict(zip(("cpu_millis", "memory_mb", "disk_mb"), numbers[i : i + 3], strict=True))
            for i in (0, 3, 6)
        )
        nodes.append(
            NodeInfo(
                name=name,
                region=region,
                status=status,
                last_seen_at=seen,
                capacity=NodeCapacity(**capacity),
                # Reservations are no load: it is what processes make of them.
                allocated=NodeUsage(**allocated, load=0.0),
                used=NodeUsage(**used, load=load),
                instances=instances,
                engine=engine,
            )
        )
    return Nodes(nodes=tuple(nodes))


async def regions(runtime: Runtime, settings: SchedulerSettings, _: RegionsWithRoom) -> Regions:
    return Regions(
        regions=tuple(
            RegionInfo(name=name, base_domain=runtime.settings.base_domain_of(name), has_room=has_room)
            for name, has_room in await runtime.store.read(_REGIONS, settings.smallest())
        )
    )
