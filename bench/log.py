"""The log of a build, from the step that prints it to a customer's live reader, and stored.

Fifty thousand lines in one build, against `docker logs` of a container that printed the same, piped to a
file: the clock of ours runs from the first line that the builder saw to the last one at the reader. Then,
with every line saying when it was printed, how late it is at the reader: alone, and while another customer's
build prints without end.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from runtime.telemetry import configure_logging

from bench.deploy import run
from bench.pairs import at_least, at_most, in_turn, ratio, report
from bench.scratch import scratch
from tests.customer import Customer, archive
from tests.platform import ADMIN, platform

LINES = 50_000
SPACED = 150
ROUNDS = 5
TEXT = "of a build that has much to say, and says it"
_PRINT = f"for (1..{LINES}) {{ print qq(line $_ {TEXT}\\n) }}"
_TELL = f"import time\nfor _ in range({SPACED}):\n    print(time.time(), flush=True)\n    time.sleep(0.02)\n"
_FLOOD = "while (1) { print qq(a flood of words without any end or sense\\n) }"


@dataclass
class Arrival:
    """What came at once, and when."""

    at: float
    chunk: bytes


@dataclass
class Bench:
    customer: Customer
    app: str
    other: Customer
    flooding: str
    folder: Path
    wrong: int = 0

    async def live(self) -> float:
        """Lines a second to a live reader."""
        deployment = await self._deploy(self.customer, self.app, ("perl", "-e", _PRINT))
        arrivals = await self._read(self.customer, deployment)
        lines = [data for _, data in _events(arrivals) if data["stream"] == "stdout"]
        self.wrong += [line["text"] for line in lines] != _expected()
        began = datetime.fromisoformat(lines[0]["at"]).timestamp()
        last = f'"line {LINES} '.encode()
        ended = next(arrival.at for arrival in arrivals if last in arrival.chunk)
        await self._compare_stored(deployment)
        return LINES / (ended - began)

    async def _compare_stored(self, deployment: str) -> None:
        stored, after = [], 0
        while True:
            path = f"/api/paas/deployments/{deployment}/log?after={after}"
            page = await self.customer.call("GET", path)
            stored += [line["text"] for line in page["lines"] if line["stream"] == "stdout"]
            after = page["next"]
            if page["finished"]:
                break
        self.wrong += stored != _expected()

    async def by_engine(self) -> float:
        began = time.perf_counter()
        with (self.folder / "by-engine.log").open("wb") as file:
            process = await asyncio.create_subprocess_exec("docker", "logs", "berth-bench-log", stdout=file)
            await process.wait()
        seconds = time.perf_counter() - began
        assert (self.folder / "by-engine.log").read_bytes().count(b"\n") == LINES
        return LINES / seconds

    async def delays(self) -> list[float]:
        """Of each line, from being printed to being read."""
        deployment = await self._deploy(self.customer, self.app, ("python3", "-c", _TELL))
        arrivals = await self._read(self.customer, deployment)
        return [at - float(data["text"]) for at, data in _events(arrivals) if data["stream"] == "stdout"]

    async def delays_in_a_flood(self) -> list[float]:
        deployment = await self._deploy(self.other, self.flooding, ("perl", "-e", _FLOOD))
        reading = asyncio.create_task(self._read(self.other, deployment))
        try:
            await asyncio.sleep(3)
            return await self.delays()
        finally:
            await self.other.call("DELETE", f"/api/paas/apps/{self.flooding}")
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _deploy(self, customer: Customer, app: str, command: tuple[str, ...]) -> str:
        """A build that says something and then fails: nothing else is waited for."""
        step = json.dumps(["/bin/sh", "-c", '"$@"; : $0; exit 3', str(time.time_ns()), *command])
        source = archive({"Dockerfile": f"FROM berth/python:3.11\nRUN {step}\n"})
        return await customer.deploy(app, source)

    async def _read(self, customer: Customer, deployment: str) -> list[Arrival]:
        path = f"/api/paas/deployments/{deployment}/log/stream"
        arrivals = []
        async with customer.client.stream("GET", path, headers=customer.headers, timeout=120) as response:
            assert response.status_code == 200
            async for chunk in response.aiter_raw():
                arrivals.append(Arrival(time.time(), chunk))
        return arrivals


def _expected() -> list[str]:
    return [f"line {number} {TEXT}" for number in range(1, LINES + 1)]


def _events(arrivals: list[Arrival]) -> list[tuple[float, Any]]:
    """Every line of the log with the moment at which it was whole."""
    found, rest = [], b""
    for arrival in arrivals:
        *blocks, rest = (rest + arrival.chunk).split(b"\n\n")
        for block in blocks:
            if block.startswith(b"id: "):
                found.append((arrival.at, json.loads(block.partition(b"\ndata: ")[2])))
    return found


def p99(delays: list[float]) -> float:
    return statistics.quantiles(delays, n=100)[98] * 1000


@asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    with scratch() as folder:
        async with platform(folder, "bench") as here, here.customer() as first, here.customer() as second:
            for customer, name in ((first, "Bench"), (second, "Flood")):
                await customer.log_in(*ADMIN)
                await customer.found(name)
                credits = f"/api/admin/organizations/{customer.organization}/credits"
                await customer.call("POST", credits, json={"amount": "100"})
            await asyncio.sleep(1)
            container = ("docker", "run", "--name", "berth-bench-log", "berth/python:3.11")
            await run(*container, "perl", "-e", _PRINT)
            try:
                app, flooding = await first.create("bench"), await second.create("flood")
                yield Bench(first, app, second, flooding, folder)
            finally:
                await run("docker", "rm", "--force", "berth-bench-log")


async def main() -> int:
    configure_logging("warning")
    async with opened() as bench:
        # Whatever is loaded the first time is loaded.
        await bench.live()
        live, by_engine = await in_turn(bench.live, bench.by_engine, rounds=ROUNDS)
        alone = await bench.delays()
        flooded = await bench.delays_in_a_flood()
    rate, note = ratio(live, by_engine)
    return report(
        [
            at_least("log.live_to_docker_logs", rate, 0.5, note),
            at_most("log.incomplete", bench.wrong, 0),
            at_most("log.written_to_read_p99_ms", p99(alone), 250, f"median {_median(alone)}"),
            at_most("log.the_same_in_a_flood_p99_ms", p99(flooded), 250, f"median {_median(flooded)}"),
        ]
    )


def _median(delays: list[float]) -> str:
    return f"{statistics.median(delays) * 1000:.0f} ms"


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
