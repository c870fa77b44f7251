"""Answers about nodes and regions, for the administrator's list and for the customer's choice of a region."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from contracts.errors import NotFound
from contracts.queries import (
    AllNodes,
    NodeDetail,
    NodeInfo,
    NodeLimits,
    NodeOf,
    NodePlacement,
    Nodes,
    NodeSample,
    Place,
    Places,
    PlacesOf,
    RegionInfo,
    Regions,
    RegionsWithRoom,
)
from contracts.reports import NodeCapacity, NodeUsage
from runtime.runtime import Runtime
from runtime.store import PLATFORM, scoped

from scheduler import copying
from scheduler.settings import SchedulerSettings

_RESOURCES = ("cpu_millis", "memory_mb", "disk_mb")

_COLUMNS = """
n.name, n.region, n.status, n.last_seen_at, n.engine, n.instances, n.cpu_millis, n.memory_mb, n.disk_mb,
n.reserved_cpu_millis, n.reserved_memory_mb, n.reserved_disk_mb,
n.used_cpu_millis, n.used_memory_mb, n.used_disk_mb,
n.machine_cpu_millis, n.machine_memory_mb, n.machine_disk_mb,
n.limit_cpu_millis, n.limit_memory_mb, n.limit_disk_mb, n.load,
n.oversubscribe_cpu, n.oversubscribe_memory, n.reserve, n.disabled, n.draining, n.drain_total, n.labels,
n.agent, n.trusted_at, n.pressed, n.engine_away, k.address, k.joined_at,
(select count(*) from placement p where p.node = n.name)
"""

_FROM = f"select {_COLUMNS} from node n left join node_key k on k.node = n.name and k.removed_at is null"

_NODES = f"{_FROM} where n.name > %s order by n.name limit %s"

_NODE = f"{_FROM} where n.name = %s"

_PLACEMENTS = scoped("""
select p.workload, w.organization, p.process, p.index, p.cpu_millis, p.memory_mb, p.disk_mb,
    p.leaving is not null
from placement p join workload w on w.id = p.workload
where p.node = %s and scope.organization is not null
order by p.workload, p.process, p.index limit 1000
""")

# At most some hundred samples: of each stretch of time the newest.
_HISTORY = """
select distinct on (stretch) at, used_cpu_millis, used_memory_mb, used_disk_mb, load,
    reserved_cpu_millis, reserved_memory_mb, reserved_disk_mb, instances
from (
    select *, floor(extract(epoch from at) / %s) as stretch from node_sample where node = %s and at > %s
) samples order by stretch, at desc
"""
_SAMPLES = 300

_PLACES = """
select process, index, node from placement where workload = %s and leaving is null order by process, index
"""

_REGIONS = """
select region, bool_or(
    status = 'online' and not engine_away and not disabled and not draining
    and free_cpu_millis - reserve * cpu_millis >= %s
    and free_memory_mb - reserve * memory_mb >= %s
    and free_disk_mb - reserve * disk_mb >= %s
) from node group by region order by region
"""


async def all_nodes(runtime: Runtime, query: AllNodes) -> Nodes:
    rows = await runtime.store.read(_NODES, (query.after or "", query.limit + 1))
    shown = tuple(_info(row) for row in rows[: query.limit])
    return Nodes(nodes=shown, next=shown[-1].name if len(rows) > query.limit else None)


async def one_node(runtime: Runtime, name: str) -> NodeInfo:
    rows = await runtime.store.read(_NODE, (name,))
    if not rows:
        raise NotFound(f"there is no node {name}; GET /api/admin/paas/nodes lists them", node=name)
    return _info(rows[0])


async def node_detail(runtime: Runtime, query: NodeOf) -> NodeDetail:
    node = await one_node(runtime, query.node)
    placements = await runtime.store.read(_PLACEMENTS, (PLATFORM, query.node))
    stretch = query.hours * 3600 / _SAMPLES
    since = runtime.clock.now() - timedelta(hours=query.hours)
    history = await runtime.store.read(_HISTORY, (stretch, query.node, since))
    return NodeDetail(
        node=node,
        copying=await copying.of_node(runtime, query.node),
        placements=tuple(
            NodePlacement(
                workload=workload,
                organization=organization,
                process=process,
                index=index,
                limits=_capacity(limits),
                leaving=leaving,
            )
            for workload, organization, process, index, *limits, leaving in placements
        ),
        history=tuple(
            NodeSample(
                at=at,
                used=_usage(used, load),
                allocated=_capacity(row[:3]),
                instances=row[3],
            )
            for at, used, load, row in ((r[0], r[1:4], r[4], r[5:9]) for r in history)
        ),
    )


def _info(row: Sequence[Any]) -> NodeInfo:
    name, region, status, seen, engine, instances, *numbers = row[:21]
    (
        load,
        oversubscribe_cpu,
        oversubscribe_memory,
        reserve,
        disabled,
        draining,
        drain_total,
        labels,
        agent,
        trusted_at,
        pressed,
        engine_away,
        address,
        joined_at,
        placements,
    ) = row[21:]
    capacity, allocated, used, machine, limits = (numbers[i : i + 3] for i in range(0, 15, 3))
    return NodeInfo(
        name=name,
        region=region,
        status=status,
        last_seen_at=seen,
        capacity=_capacity(capacity),
        # Reservations are no load: it is what processes make of them.
        allocated=_usage(allocated, 0.0),
        used=_usage(used, load),
        instances=instances,
        engine=engine,
        engine_away=engine_away,
        machine=_capacity(machine),
        limits=NodeLimits(**dict(zip(_RESOURCES, limits, strict=True))),
        oversubscribe_cpu=oversubscribe_cpu,
        oversubscribe_memory=oversubscribe_memory,
        reserve=reserve,
        disabled=disabled,
        draining=draining,
        drain_total=drain_total,
        placements=placements,
        labels=labels,
        agent=agent,
        address=address,
        joined_at=joined_at,
        trusted_at=trusted_at,
        pressed=tuple(pressed),
    )


def _capacity(numbers: Sequence[int]) -> NodeCapacity:
    return NodeCapacity(**dict(zip(_RESOURCES, numbers, strict=True)))


def _usage(numbers: Sequence[int], load: float) -> NodeUsage:
    return NodeUsage(**dict(zip(_RESOURCES, numbers, strict=True)), load=load)


async def places(runtime: Runtime, question: PlacesOf) -> Places:
    rows = await runtime.store.read(_PLACES, (question.workload,))
    return Places(places=tuple(Place(process=p, index=i, node=n) for p, i, n in rows))


async def regions(runtime: Runtime, settings: SchedulerSettings, _: RegionsWithRoom) -> Regions:
    return Regions(
        regions=tuple(
            RegionInfo(name=name, base_domain=runtime.settings.base_domain_of(name), has_room=has_room)
            for name, has_room in await runtime.store.read(_REGIONS, settings.smallest())
        )
    )
