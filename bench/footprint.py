"""Memory and idle CPU of the whole platform on one machine: every service with a local agent, their Postgres,
NATS and Traefik, without any app.

Against its parts, bare, started for each pair: an empty Postgres with the same settings, NATS, Traefik, one
FastAPI process and one FastStream worker (`bare.py`). Memory is PSS: what processes share counts once. The
container engine is the machine's and counts on neither side.
"""

import asyncio
import statistics
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from embedded.nats import Nats
from embedded.postgres import Postgres
from embedded.traefik import Traefik
from runtime.permissions import SERVICES
from runtime.telemetry import configure_logging

from bench.node_python import node_python
from bench.pairs import at_most, in_turn, ratio, report
from bench.processes import cpu_seconds, pss_mb, rss_mb
from bench.scratch import scratch
from tests.harness import EVERYTHING, SECRET, bus_config, free_port
from tests.platform import platform

NODE = "bench"
AGENT = "node-agent"
SETTLE = 10.0
IDLE = 15.0

# The name of a process, and its pid.
Parts: TypeAlias = dict[str, int]


@asynccontextmanager
async def bare(folder: Path) -> AsyncIterator[Parts]:
    postgres = Postgres(folder / "postgres", free_port(), SECRET)
    nats = Nats(folder / "nats", free_port(), bus_config())
    traefik = Traefik(folder / "traefik", free_port(), free_port())
    programs: dict[str, asyncio.subprocess.Process] = {}
    try:
        for server in (postgres, nats, traefik):
            server.start()
        for server in (postgres, nats, traefik):
            await asyncio.to_thread(server.wait_ready)
        database = postgres.url(database="postgres").replace("://", "+psycopg://")
        for name, *arguments in (
            ("fastapi", database, str(free_port())),
            ("faststream", nats.url, EVERYTHING, SECRET),
        ):
            programs[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bench.bare", name, *arguments
            )
        yield _running(postgres, nats, traefik) | {name: made.pid for name, made in programs.items()}
        for name, program in programs.items():
            if program.returncode is not None:
                raise RuntimeError(f"the bare {name} ended by itself: {program.returncode}")
    finally:
        for program in programs.values():
            if program.returncode is None:
                program.terminate()
            await program.wait()
        for server in (traefik, nats, postgres):
            server.stop()


@asynccontextmanager
async def whole(
    folder: Path, *groups: tuple[str, ...], agent_python: str = sys.executable
) -> AsyncIterator[Parts]:
    async with platform(folder, NODE, *groups, agent_python=agent_python) as here:
        servers = _running(here.running.postgres, here.running.nats, here.traefik)
        yield servers | {name: process.pid for name, process in here.processes.items()}


def _running(*servers: Postgres | Nats | Traefik) -> Parts:
    found = {server.daemon.name: server.daemon.pid() for server in servers}
    return {name: pid for name, pid in found.items() if pid is not None}


@dataclass
class Bench:
    memory: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    async def platform(self) -> float:
        with scratch() as folder:
            async with whole(folder) as parts:
                await asyncio.sleep(SETTLE)
                before = sum(map(cpu_seconds, parts.values()))
                await asyncio.sleep(IDLE)
                self.cpu.append((sum(map(cpu_seconds, parts.values())) - before) / IDLE)
                self.memory.append(_told("platform", parts))
                return self.memory[-1]

    async def bare(self) -> float:
        with scratch() as folder:
            async with bare(folder) as parts:
                await asyncio.sleep(SETTLE)
                return _told("bare parts", parts)

    async def agent(self) -> float:
        """As a node has it installed. All its pages, for there it shares them with nobody."""
        with scratch() as folder:
            async with whole(folder, SERVICES, (AGENT,), agent_python=node_python()) as parts:
                await asyncio.sleep(SETTLE)
                return rss_mb(parts[AGENT])


def _told(what: str, parts: Parts) -> float:
    memory = {name: pss_mb(pid) for name, pid in parts.items()}
    total = sum(memory.values())
    print(f"  {what}: {total:.0f} MB, " + ", ".join(f"{name} {mb:.0f}" for name, mb in memory.items()))
    return total


async def main() -> int:
    configure_logging("warning")
    bench = Bench()
    platform_mb, bare_mb = await in_turn(bench.platform, bench.bare)
    agent_mb = await bench.agent()
    value, spread = ratio(platform_mb, bare_mb)
    idle = f"{len(bench.cpu)} times {IDLE:.0f} s without work"
    return report(
        [
            at_most("footprint.platform_to_bare_parts", value, 1.25, spread),
            at_most("footprint.platform_mb", statistics.median(bench.memory), 400),
            at_most("footprint.agent_mb", agent_mb, 60),
            at_most("footprint.idle_cpu_percent", 100 * statistics.fmean(bench.cpu), 2, idle),
        ]
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
