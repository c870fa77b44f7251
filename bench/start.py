"""From what is desired to an instance that answers, of an image that is there; and what an agent of a hundred
containers costs.

The agent is a process of its own, on a real NATS and the machine's engine; an order is a value of its bucket,
and an instance is healthy when the agent says that it has started. Against it `docker run` with the same
limits on a network that is there, and the same probe. Memory and CPU count whatever the agent itself runs.
"""

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import nats
from contracts.events import InstanceStarted, InstanceStopped
from contracts.ids import new_id
from contracts.money import Rate
from contracts.workload import HealthCheck, Limits, NodeWorkload, Slot, WorkloadSpec
from docker import APIClient
from nats.aio.client import Client
from node_agent.health import probe
from runtime.bucket import Bucket
from runtime.bus import Bus
from runtime.streams import declare
from runtime.telemetry import Telemetry, configure_logging

from bench.deploy import run
from bench.node_python import node_python
from bench.pairs import at_most, in_turn, ratio, report
from bench.processes import cpu_seconds, rss_mb
from bench.scratch import scratch
from tests.harness import EVERYTHING, SECRET, eventually
from tests.platform import Platform, platform
from tests.ports import docker_image

NODE = "bench"
ROUNDS = 7
CONTAINERS = 100
# So many apps of each organization: a network each, as on a node of a hosting company.
APPS = 5
SETTLE = 10.0
# Everything an agent does on a timer comes at least once.
WATCHED = 65.0
NETWORK, SUBNET = "berth-bench-start", "10.249.7"
LIMITS = Limits(cpu_millis=500, memory_mb=64, disk_mb=64, pids=64)
HEALTH = HealthCheck(kind="http", path="/")


def spec(organization: str) -> WorkloadSpec:
    return WorkloadSpec(
        id=new_id("app"),
        name="hello",
        organization=organization,
        project=new_id("prj"),
        generation=1,
        state="running",
        region="local",
        plan="small",
        limits=LIMITS,
        rate=Rate(micros_per_hour=7_000, currency="USD"),
        uid=100_000,
        health=HEALTH,
        grace_seconds=1,
        image=docker_image.IMAGE,
        release=new_id("rel"),
        deployment=new_id("dep"),
    )


@dataclass
class Orders:
    """What a scheduler would say, and what the node answers."""

    desired: Bucket
    client: Client

    async def begin(self, chosen: Sequence[WorkloadSpec]) -> None:
        """Returns when all of them are healthy."""
        await self._until(InstanceStarted, chosen, 1)

    async def end(self, chosen: Sequence[WorkloadSpec]) -> None:
        await self._until(InstanceStopped, [one.model_copy(update={"state": "deleted"}) for one in chosen], 2)

    async def _until(
        self, kind: type[InstanceStarted | InstanceStopped], chosen: Sequence[WorkloadSpec], revision: int
    ) -> None:
        waiting = {one.id for one in chosen}
        heard = asyncio.Event()

        async def hear(message: Any) -> None:
            waiting.discard(kind.model_validate_json(message.data).workload)
            if not waiting:
                heard.set()

        subscription = await self.client.subscribe(f"{kind.name}.>", cb=hear)
        await self.client.flush()
        for one in chosen:
            slots = (Slot(process="web", index=0),) if one.wants_instances else ()
            told = NodeWorkload(node=NODE, revision=revision, spec=one, slots=slots)
            await self.desired.put(f"{NODE}.{one.id}", told.model_dump_json().encode())
        async with asyncio.timeout(200):
            await heard.wait()
        await subscription.unsubscribe()


@asynccontextmanager
async def agent() -> AsyncIterator[tuple[Platform, Orders]]:
    """As operators run it, but that whoever leaves need not be drained."""
    with scratch() as folder:
        async with platform(
            folder, NODE, ("node-agent",), agent_python=node_python(), NODE_AGENT_DRAIN_SECONDS="0"
        ) as here:
            client = await nats.connect(here.running.nats.url, user=EVERYTHING, password=SECRET)
            bus = Bus(here.running.nats.url, EVERYTHING, SECRET, Telemetry(None))
            await bus.connect(with_broker=False)
            try:
                await declare(client.jetstream())
                yield here, Orders(bus.bucket("desired"), client)
            finally:
                await bus.close()
                await client.close()


async def ratios(orders: Orders) -> tuple[float, str]:
    organization = new_id("org")
    # Its network is there, as that of the other arm is.
    first = spec(organization)
    await orders.begin([first])

    async def ours() -> float:
        one = spec(organization)
        began = time.perf_counter()
        await orders.begin([one])
        took = time.perf_counter() - began
        await orders.end([one])
        return took

    addresses = itertools.count(10)

    async def bare() -> float:
        address = f"{SUBNET}.{next(addresses)}"
        began = time.perf_counter()
        container = await run(
            *("docker", "run", "--detach", "--init", "--env", "PORT=8080", "--user", "100000:100000"),
            *("--network", NETWORK, "--ip", address, "--memory", "64m", "--memory-swap", "64m"),
            *("--cpus", "0.5", "--pids-limit", "64", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--tmpfs", "/tmp", docker_image.IMAGE),
        )

        async def answers() -> bool:
            return await probe(HEALTH, address, 8080) is None

        await eventually(answers, every=0.01)
        took = time.perf_counter() - began
        await run("docker", "rm", "--force", container)
        return took

    await run("docker", "network", "create", "--subnet", f"{SUBNET}.0/24", NETWORK)
    try:
        # Neither arm pays for what is loaded once.
        await in_turn(ours, bare, rounds=1)
        measured = await in_turn(ours, bare, rounds=ROUNDS)
    finally:
        await run("docker", "network", "rm", NETWORK)
    await orders.end([first])
    return ratio(*measured)


async def full(here: Platform, orders: Orders) -> tuple[float, float]:
    """MB, and the share of a core."""
    organizations = [new_id("org") for _ in range(CONTAINERS // APPS)]
    chosen = [spec(organization) for organization in organizations for _ in range(APPS)]
    began = time.perf_counter()
    await orders.begin(chosen)
    sys.stderr.write(f"{CONTAINERS} containers in {time.perf_counter() - began:.0f} s\n")
    await asyncio.sleep(SETTLE)
    pid = here.processes["node-agent"].pid
    before, began = cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(WATCHED)
    used = cpu_seconds(pid) - before
    return rss_mb(pid), used / (time.perf_counter() - began)


async def main() -> int:
    configure_logging("warning")
    client = APIClient(version="auto")
    docker_image.ensure(client)
    client.close()
    async with agent() as (_, orders):
        start, spread = await ratios(orders)
    async with agent() as (here, orders):
        memory, cpu = await full(here, orders)
    words = f"with {CONTAINERS} containers of {CONTAINERS // APPS} organizations"
    return report(
        [
            at_most("start.ratio", start, 1.5, spread),
            at_most("start.agent_memory_mb", memory, 80, words),
            at_most("start.agent_cpu_share", cpu, 0.05, words),
        ]
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
