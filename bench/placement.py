"""Where 100,000 instances go on 10,000 nodes: how fast that is decided, how fast it is decided for good, and
how well the nodes are filled.

Decisions are whole plans of the scheduler, counted in CPU time of one core: on 10,000 nodes against 100 that
have as much room in all. Durable placements go through the real service: taken from the queue, planned,
checked again on locked rows, committed in Postgres with their events in the outbox; against bare SQL that
writes the same rows in batches of the same size, with nothing to read, to decide or to check.
"""

import asyncio
import gc
import heapq
import itertools
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from contracts.events import PlacementDecided
from contracts.ids import new_id
from contracts.money import Rate
from contracts.workload import Limits, Process, WorkloadSpec
from runtime.runtime import Runtime
from runtime.store import PLATFORM
from runtime.telemetry import configure_logging
from scheduler.due import BATCH
from scheduler.fleet import NOTHING, Fleet, Node, Room
from scheduler.place import Placing
from scheduler.plan import make_plan
from scheduler.reconcile import Demand

from bench.pairs import Figure, at_least, at_most, in_turn, ratio, report
from bench.scratch import scratch
from tests.harness import Servers, open_harness, servers

NODES = 10_000
FEW = 100
INSTANCES = 100_000
REPLICAS = 4
DURABLE = 40_000
SINGLE = 10_000
# A node of 16 cores, 64 GB and 1 TB, whose cores are promised twice.
MACHINE = Room(32_000, 65_536, 1_000_000)
PLANS = (Room(500, 512, 5_000), Room(1_000, 2_048, 20_000), Room(4_000, 8_192, 80_000))
SHARES = (70, 25, 5)


def machines(count: int) -> list[Node]:
    """As much room in all, however many there are."""
    size = Room(*(part * NODES // count for part in MACHINE))
    return [Node(f"n{i:05}", "eu", True, size, NOTHING, size) for i in range(count)]


def demands() -> list[Demand]:
    """Workloads of one to seven replicas, in the plans customers choose."""
    chance = random.Random(1)
    found: list[Demand] = []
    instances = 0
    while instances < INSTANCES:
        replicas = min(chance.randint(1, 2 * REPLICAS - 1), INSTANCES - instances)
        room = chance.choices(PLANS, SHARES)[0]
        slots = tuple(("web", i) for i in range(replicas))
        found.append(Demand(f"app_{len(found):08}", "eu", "running", room, slots))
        instances += replicas
    return found


class Decisions:
    def __init__(self) -> None:
        self.demands = demands()
        self.single = [Demand(f"one_{i:08}", "eu", "running", PLANS[0], (("web", 0),)) for i in range(20_000)]
        self.unplaced = 0
        self.overcommitted = 0
        self.waste = 0.0
        self.fullest = 0.0

    async def many(self) -> float:
        return self._decide(NODES, self.demands)

    async def few(self) -> float:
        return self._decide(FEW, self.demands)

    async def one_by_one(self) -> float:
        """Workloads of a single instance: a plan for each."""
        return self._decide(NODES, self.single)

    def _decide(self, count: int, wanted: list[Demand], *, pack: bool = False) -> float:
        fleet = Fleet(machines(count), pack=pack)
        gc.collect()
        gc.disable()
        began = time.process_time()
        plans = [make_plan(demand, (), fleet) for demand in wanted]
        seconds = time.process_time() - began
        gc.enable()
        taken: dict[str, list[Room]] = {}
        for plan in plans:
            self.unplaced += len(plan.demand.slots) - len(plan.slots)
            for name in plan.slots.values():
                taken.setdefault(name, []).append(plan.demand.room)
        size = fleet.region("eu")[0].capacity
        sums = {name: [sum(part) for part in zip(*rooms, strict=True)] for name, rooms in taken.items()}
        self.overcommitted += sum(
            any(s > c for s, c in zip(total, size, strict=True)) for total in sums.values()
        )
        most = max(sum(total[i] for total in sums.values()) / part for i, part in enumerate(size))
        self.waste = len(sums) / most
        self.fullest = max(node.score for node in fleet.region("eu"))
        return sum(len(plan.slots) for plan in plans) / seconds

    def packed(self) -> float:
        """Nodes in use against the least there could be if instances could be cut."""
        self._decide(NODES, self.demands, pack=True)
        return self.waste

    def balanced(self) -> float:
        """How full the fullest node is, against what it is when every workload goes to the idlest of all."""
        self._decide(NODES, self.demands)
        nodes = machines(NODES)
        idlest = [(node.score, i) for i, node in enumerate(nodes)]
        for demand in self.demands:
            node, left = nodes[idlest[0][1]], len(demand.slots)
            while left:
                # Replicas stay together while there is room.
                if not node.fits(demand.room):
                    heapq.heapreplace(idlest, (node.score, idlest[0][1]))
                    node = nodes[idlest[0][1]]
                node.resize(NOTHING, demand.room)
                left -= 1
            heapq.heapreplace(idlest, (node.score, idlest[0][1]))
        return self.fullest / max(node.score for node in nodes)


# --- for good -------------------------------------------------------------------------------------------

_NODES = """
insert into node (name, region, status, engine, instances, boot, sequence, reported_at, last_seen_at,
    cpu_millis, memory_mb, disk_mb, used_cpu_millis, used_memory_mb, used_disk_mb, load,
    free_cpu_millis, free_memory_mb, free_disk_mb)
select name, 'eu', 'online', 'docker', 0, 'b', 1, now(), now(), %s, %s, %s, 0, 0, 0, 0, %s, %s, %s
from unnest(%s::text[]) as name
"""

_WORKLOADS = """
insert into workload (id, organization, region, generation, spec, due_at)
select id, organization, 'eu', 1, spec, now()
from unnest(%s::text[], %s::text[], %s::jsonb[]) as w(id, organization, spec)
"""

_PLACEMENTS = """
insert into placement (workload, process, index, node, cpu_millis, memory_mb, disk_mb)
select * from unnest(
    %s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[]
)
"""

_RESERVED = """
update node n set
    reserved_cpu_millis = n.reserved_cpu_millis + t.cpu, free_cpu_millis = n.free_cpu_millis - t.cpu,
    reserved_memory_mb = n.reserved_memory_mb + t.memory, free_memory_mb = n.free_memory_mb - t.memory,
    reserved_disk_mb = n.reserved_disk_mb + t.disk, free_disk_mb = n.free_disk_mb - t.disk
from unnest(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[]) as t(name, cpu, memory, disk)
where n.name = t.name
"""

_PROJECTIONS = """
insert into projection (node, workload, slots, revision)
select * from unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[])
"""

_SETTLED = """
update workload w set revision = 1, in_force = w.spec, due_at = null, told_generation = w.generation
from unnest(%s::text[]) as t(id) where w.id = t.id
"""

_OUTBOX = """
insert into outbox (event_id, subject, payload, headers)
select * from unnest(%s::text[], %s::text[], %s::bytea[], %s::jsonb[])
"""

_TABLES = ", ".join(
    f"scheduler.{name}"
    for name in ("outbox", "projection", "placement", "workload", "node_sample", "node_usage", "node")
)
_EMPTY = f"truncate {_TABLES} cascade"
_SETTLE_DOWN = f"vacuum analyze {_TABLES}"

_OVERCOMMITTED = """
select count(*) from node n left join (
    select node, sum(cpu_millis) as cpu, sum(memory_mb) as memory, sum(disk_mb) as disk
    from placement group by node
) p on p.node = n.name
where coalesce(p.cpu, 0) <> n.reserved_cpu_millis or coalesce(p.memory, 0) <> n.reserved_memory_mb
    or n.reserved_cpu_millis > n.cpu_millis or n.reserved_memory_mb > n.memory_mb
    or n.reserved_disk_mb > n.disk_mb
"""

_STATE = """
select (select count(*) from placement), (select count(*) from outbox),
    (select count(*) from workload where due_at is not null or blocked is not null)
"""


def specs(replicas_each: int, count: int = DURABLE) -> list[WorkloadSpec]:
    chance = random.Random(2)
    found: list[WorkloadSpec] = []
    instances = 0
    while instances < count:
        replicas = min(chance.randint(1, 2 * replicas_each - 1), count - instances)
        cpu, memory, disk = chance.choices(PLANS, SHARES)[0]
        found.append(
            WorkloadSpec(
                id=new_id("app"),
                name="shop",
                organization=new_id("org"),
                project=new_id("prj"),
                generation=1,
                state="running",
                region="eu",
                plan="small",
                limits=Limits(cpu_millis=cpu, memory_mb=memory, disk_mb=disk),
                rate=Rate(micros_per_hour=7000, currency="USD"),
                uid=100_000,
                image="registry.localhost/shop@sha256:1",
                deployment=new_id("dep"),
                processes={"web": Process(replicas=replicas)},
            )
        )
        instances += replicas
    return found


@dataclass
class Durable:
    running: Servers
    runtime: Runtime
    overcommitted: int = 0
    lost: int = 0

    async def placed(self) -> float:
        return await self._placed(specs(REPLICAS))

    async def placed_singly(self) -> float:
        return await self._placed(specs(1, SINGLE))

    async def _placed(self, wanted: list[WorkloadSpec]) -> float:
        placing = Placing(self.runtime, lambda: None)
        await self._prepare(wanted[:1])
        # A scheduler at work knows its nodes.
        await placing.place()
        await self._add(wanted[1:])
        ((before, *_),) = await self.runtime.store.read(_STATE)
        began = time.perf_counter()
        while await placing.place():
            pass
        seconds = time.perf_counter() - began
        ((placements, events, left),) = await self.runtime.store.read(_STATE)
        ((overcommitted,),) = await self.runtime.store.read(_OVERCOMMITTED)
        self.overcommitted += overcommitted
        self.lost += left + sum(spec.replicas() for spec in wanted) - placements + int(events == 0)
        return float((placements - before) / seconds)

    async def bare(self) -> float:
        """The same rows, written by whoever has nothing else to do."""
        wanted = specs(REPLICAS)
        await self._prepare(wanted)
        names = [f"n{i:05}" for i in range(NODES)]
        random.Random(3).shuffle(names)
        free = itertools.cycle(names)
        batches = [_rows(chunk, free) for chunk in _chunks(wanted, BATCH)]
        began = time.perf_counter()
        count = 0
        for rows in batches[1:]:
            async with self.runtime.store.transaction(PLATFORM) as tx:
                connection = await tx.connection()
                for statement, columns in rows:
                    await connection.execute(statement, columns, prepare=True)
            count += len(rows[0][1][0])
        return count / (time.perf_counter() - began)

    async def _prepare(self, wanted: list[WorkloadSpec]) -> None:
        await asyncio.to_thread(self._execute, _EMPTY)
        async with self.runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            names = [f"n{i:05}" for i in range(NODES)]
            await connection.execute(_NODES, (*MACHINE, *MACHINE, names))
        await self._add(wanted)

    async def _add(self, wanted: list[WorkloadSpec]) -> None:
        async with self.runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            await connection.execute(
                _WORKLOADS,
                (
                    [spec.id for spec in wanted],
                    [spec.organization for spec in wanted],
                    [spec.model_dump_json() for spec in wanted],
                ),
            )
        await asyncio.to_thread(self._execute, _SETTLE_DOWN)

    def _execute(self, statement: str) -> None:
        with psycopg.connect(self.running.postgres.url(database="bench"), autocommit=True) as connection:
            connection.execute(statement)


def _rows(chunk: list[WorkloadSpec], free: Iterator[str]) -> list[tuple[str, tuple[Any, ...]]]:
    nodes = [next(free) for _ in chunk]
    slots = [
        (spec.id, "web", i, node, *Room.of(spec.limits))
        for spec, node in zip(chunk, nodes, strict=True)
        for i in range(spec.replicas())
    ]
    taken: dict[str, list[int]] = {}
    for _, _, _, node, *room in slots:
        total = taken.setdefault(node, [0, 0, 0])
        for i, part in enumerate(room):
            total[i] += part
    events = [
        PlacementDecided(
            workload=spec.id,
            organization=spec.organization,
            generation=1,
            deployment=spec.deployment,
            nodes=(node,),
        )
        for spec, node in zip(chunk, nodes, strict=True)
    ]
    ids = [spec.id for spec in chunk]
    return [
        (_PLACEMENTS, tuple(map(list, zip(*slots, strict=True)))),
        (_RESERVED, tuple(map(list, zip(*((name, *room) for name, room in taken.items()), strict=True)))),
        (_PROJECTIONS, (nodes, ids, [spec.replicas() for spec in chunk], [1] * len(chunk))),
        (_SETTLED, (ids,)),
        (
            _OUTBOX,
            (
                [event.id for event in events],
                [event.subject() for event in events],
                [event.model_dump_json().encode() for event in events],
                ["{}"] * len(events),
            ),
        ),
    ]


def _chunks(items: list[WorkloadSpec], size: int) -> Iterator[list[WorkloadSpec]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


async def durable(folder: Path) -> list[Figure]:
    with servers(folder) as running:
        harness = await open_harness(running, "bench", folder)
        try:
            bench = Durable(running, await harness.store("scheduler"))
            placed, bare, singly = await in_turn(bench.placed, bench.bare, bench.placed_singly)
        finally:
            await harness.close()
    share, note = ratio(placed, bare)
    one = statistics.median(singly)
    return [
        at_least("placement.durable_to_bare_sql", share, 0.7, note),
        at_least(
            "placement.durable_per_second",
            statistics.median(placed),
            10_000,
            f"workloads of {REPLICAS} instances on average; of one instance each: {one:.0f}",
        ),
        at_most("placement.durable_overcommitted_nodes", bench.overcommitted, 0),
        at_most("placement.durable_lost", bench.lost, 0),
    ]


async def main() -> int:
    configure_logging("warning")
    decisions = Decisions()
    many, few, singly = await in_turn(decisions.many, decisions.few, decisions.one_by_one)
    share, note = ratio(many, few)
    one = statistics.median(singly)
    figures = [
        at_least(
            "placement.decisions_per_second",
            statistics.median(many),
            50_000,
            f"{NODES} nodes, {INSTANCES} instances; workloads of one instance each: {one:.0f}",
        ),
        at_least("placement.decisions_10000_to_100_nodes", share, 0.8, note),
        at_most("placement.overcommitted_nodes", decisions.overcommitted, 0),
        at_most("placement.unplaced", decisions.unplaced, 0),
        at_most(
            "placement.fullest_node_to_all_compared",
            decisions.balanced(),
            1.25,
            "when balancing: the fullest node, against every workload going to the idlest of all nodes",
        ),
        at_most(
            "placement.packed_to_lower_bound",
            decisions.packed(),
            1.25,
            "nodes in use when packing, against what the sum of all instances would fill",
        ),
    ]
    with scratch() as folder:
        figures += await durable(folder)
    return report(figures)


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
