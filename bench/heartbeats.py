"""10,000 nodes that report: what their heartbeats cost a scheduler, and what becomes of a restart of all.

The reports are real messages on a real bus, with ten instances each, heard by the real scheduler: its share
of a core is the CPU of this process, which also does the sending: what that takes by itself is taken off.
Steady: each node every 30 seconds. Storm: every agent begins again at once, with a new boot and reports as an
agent makes them when it starts; absorbed when the newest report of each is in the table. All the while the
scheduler looks for silent nodes, and may call none of these offline.
"""

import asyncio
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import uvloop
from contracts.ids import new_id
from contracts.money import Rate
from contracts.reports import InstanceUsage, NodeCapacity, NodeHeartbeat, NodeUsage, RunningInstance
from contracts.workload import Slot
from runtime.bus import Bus
from runtime.runtime import Runtime
from runtime.telemetry import configure_logging

from bench.pairs import at_most, report
from bench.scratch import scratch
from tests.harness import Harness, eventually, open_harness, servers

NODES = 10_000
INSTANCES = 10
PERIOD = 30.0
STEADY_SECONDS = 20
# As often as an agent introduces itself when it starts.
STORM_REPORTS = 3


def heartbeats(boot: str, sequence: int) -> list[tuple[str, bytes]]:
    """What all nodes say once, as it goes over the bus."""
    instances = tuple(
        RunningInstance(
            instance=new_id("ins"),
            workload=new_id("app"),
            organization=new_id("org"),
            slot=Slot(process="web", index=0),
            generation=1,
            deployment=new_id("dep"),
            rate=Rate(micros_per_hour=7000, currency="USD"),
            started_at=datetime.now(UTC),
            healthy=True,
            usage=InstanceUsage(cpu_seconds=12_345.6, cpu_millis=300, memory_mb=400),
        )
        for _ in range(INSTANCES)
    )
    found = []
    for i in range(NODES):
        one = NodeHeartbeat(
            node=f"n{i:05}",
            region="eu",
            boot=f"{boot}-{i}",
            sequence=sequence,
            at=datetime.now(UTC),
            capacity=NodeCapacity(cpu_millis=16_000, memory_mb=65_536, disk_mb=1_000_000),
            used=NodeUsage(cpu_millis=3_000, memory_mb=20_000, disk_mb=100_000, load=2.5),
            engine="docker 20.10",
            instances=instances,
        )
        found.append((one.subject(), one.model_dump_json().encode()))
    random.Random(sequence).shuffle(found)
    return found


class Bench:
    def __init__(self, harness: Harness, runtime: Runtime, bus: Bus) -> None:
        self._harness = harness
        self._runtime = runtime
        self._bus = bus

    async def storm(self, boot: str) -> float:
        """All at once, each as often as an agent that starts; until the last of each is known."""
        waves = [heartbeats(boot, sequence) for sequence in range(1, STORM_REPORTS + 1)]
        began = time.perf_counter()
        for wave in waves:
            await self._say(wave)
        await eventually(
            lambda: self._all_known(boot, STORM_REPORTS), seconds=120, every=0.05, what="every node"
        )
        return time.perf_counter() - began

    async def steady(self, boot: str) -> float:
        """The share of a core that it takes, without what saying it takes."""
        wave = heartbeats(boot, STORM_REPORTS + 1)
        part = int(NODES / PERIOD)
        # To a subject nobody hears.
        said = time.process_time()
        await self._say([("_unheard", payload) for _, payload in wave[:part]])
        saying = time.process_time() - said
        cpu, began = time.process_time(), time.perf_counter()
        for second in range(STEADY_SECONDS):
            await self._say(wave[second * part : (second + 1) * part])
            await asyncio.sleep(max(0.0, began + second + 1 - time.perf_counter()))
        used = time.process_time() - cpu - saying * STEADY_SECONDS
        return used / (time.perf_counter() - began)

    async def _say(self, wave: list[tuple[str, bytes]]) -> None:
        for subject, payload in wave:
            await self._bus.client.publish(subject, payload)
        await self._bus.client.flush()

    async def _all_known(self, boot: str, sequence: int) -> bool:
        ((count,),) = await self._runtime.store.read(
            "select count(*) from node where boot like %s and sequence >= %s and status = 'online'",
            (f"{boot}-%", sequence),
        )
        return bool(count == NODES)

    async def outages(self) -> int:
        ((count,),) = await self._runtime.store.read(
            "select count(*) from node where status = 'offline' or outages > 0"
        )
        return int(count)


async def measure(folder: Path) -> int:
    with servers(folder) as running:
        harness = await open_harness(running, "bench", folder)
        try:
            runtime, bus = await harness.store("scheduler"), await harness.everybody()
            await harness.start("scheduler")
            bench = Bench(harness, runtime, bus)
            first = await bench.storm("first")
            again = await bench.storm("second")
            share = await bench.steady("second")
            outages = await bench.outages()
        finally:
            await harness.close()
    return report(
        [
            at_most("heartbeats.steady_share_of_a_core", share, 0.25, f"{NODES} nodes every {PERIOD:.0f} s"),
            at_most(
                "heartbeats.storm_seconds",
                again,
                20,
                f"{NODES * STORM_REPORTS} reports at once; when none of the nodes was known: {first:.1f}",
            ),
            at_most("heartbeats.false_outages", outages, 0),
        ]
    )


async def main() -> int:
    configure_logging("error")
    with scratch() as folder:
        return await measure(folder)


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
