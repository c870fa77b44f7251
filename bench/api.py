"""Requests per second of `GET /api/paas/apps` with 50 apps and a token, through the gateway's own process.

Against one bare FastAPI route that runs the same statement through psycopg's pool and sends the same bytes,
without authentication, tenancy, metrics or traces, served by the same server with the same settings.
"""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from runtime.permissions import SERVICES
from runtime.secrets import derive
from runtime.telemetry import configure_logging

from bench.pairs import at_least, in_turn, ratio, report
from bench.scratch import scratch
from tests.customer import Customer
from tests.harness import SECRET, eventually, free_port
from tests.platform import ADMIN, Platform, platform

APPS = 50
CONNECTIONS = 16
ROUNDS = 7
SECONDS = 4
WARM_UP = 1


@dataclass
class Bench:
    customer: Customer
    gateway: str
    bare: str

    async def ours(self) -> float:
        return await self._rate(self.gateway)

    async def theirs(self) -> float:
        return await self._rate(self.bare)

    async def _rate(self, url: str) -> float:
        await wrk(url, self.customer.headers, WARM_UP)
        return await wrk(url, self.customer.headers, SECONDS)

    async def same_bytes(self) -> None:
        ours = await self.customer.client.get(self.gateway, headers=self.customer.headers)
        bare = await self.customer.client.get(self.bare)
        if ours.content != bare.content or len(ours.json()["apps"]) != APPS:
            raise RuntimeError(f"the two do not say the same: {ours.text[:500]} and {bare.text[:500]}")


async def wrk(url: str, headers: dict[str, str], seconds: int) -> float:
    more = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
    process = await asyncio.create_subprocess_exec(
        *("wrk", "--threads", "1", "--connections", str(CONNECTIONS), "--duration", f"{seconds}s"),
        *(*more, url),
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await process.communicate())[0].decode()
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if rate is None or "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(said)
    return float(rate[1])


@asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    others = tuple(name for name in SERVICES if name != "gateway")
    with scratch() as folder:
        async with (
            platform(folder, "bench", ("gateway",), (*others, "node-agent")) as here,
            here.customer() as customer,
        ):
            await customer.log_in(*ADMIN)
            await customer.found("Bench")
            for number in range(APPS):
                await customer.create(f"app-{number}", retry=True)
            async with bare_route(here, customer) as bare:
                bench = Bench(customer, f"{here.api}/api/paas/apps", bare)
                await bench.same_bytes()
                yield bench


@asynccontextmanager
async def bare_route(here: Platform, customer: Customer) -> AsyncIterator[str]:
    port = free_port()
    database = here.running.postgres.url("berth_gateway", derive(SECRET, "database/gateway"))
    assert customer.organization is not None
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.bare", "apps", database, customer.organization, str(port)
    )
    url = f"http://127.0.0.1:{port}/api/paas/apps"

    async def answers() -> bool:
        try:
            return (await customer.client.get(url)).status_code == 200
        except httpx.TransportError:
            return False

    try:
        await eventually(answers, seconds=30, what="the bare route")
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def main() -> int:
    configure_logging("warning")
    async with opened() as bench:
        ours, bare = await in_turn(bench.ours, bench.theirs, rounds=ROUNDS)
    value, spread = ratio(ours, bare)
    return report([at_least("api.gateway_to_bare_route", value, 0.8, spread)])


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
