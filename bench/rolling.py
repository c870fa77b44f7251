"""Ten releases in a row under constant load, one of them sick: no request may fail.

An app of two instances is asked over connections that stay open, as fast as it answers, from the first
release to the last; every answer is counted. The sixth release fails its health check and has to be turned
down. The other arm is a script that stops the old container and starts the new one on the same port: if that
failed nothing, the load would prove nothing.
"""

import asyncio
import sys

import httpx
from runtime.telemetry import configure_logging

from bench.deploy import run, source
from bench.pairs import at_least, at_most, report
from bench.scratch import scratch
from tests.customer import Customer, archive
from tests.harness import free_port
from tests.platform import ADMIN, Platform, platform
from tests.ports.web import Load

RELEASES = 10
SICK = 6
REQUESTS = 100_000
CONNECTIONS = 8
REPLICAS = 2
NAIVE_SWITCHES = 3
IMAGE = "berth/python:3.11"
HEALTH = {"kind": "http", "path": "/", "interval_seconds": 1, "timeout_seconds": 2, "start_seconds": 20}


def release(number: int) -> bytes:
    _, files = source()
    if number == SICK:
        files = {**files, "app.py": files["app.py"].replace("send_response(200)", "send_response(503)")}
    return archive(files)


async def rolling(customer: Customer, port: int) -> tuple[Load, list[str]]:
    app, view = await customer.live("rolling", release(0), replicas=REPLICAS, health=HEALTH)
    hostname = str(httpx.URL(view["url"]).host)
    await customer.answers(hostname, "version")
    outcomes = []
    async with Load(port, hostname, connections=CONNECTIONS) as load:
        for number in range(1, RELEASES + 1):
            ended = await customer.ended(await customer.deploy(app, release(number)))
            outcomes.append(ended["status"])
            how = f"{ended['status']} ({ended['reason']})"
            sys.stderr.write(f"release {number}: {how}, {load.total} requests, {load.failed} failed\n")
        while load.total < REQUESTS:
            await load.more(1_000)
    return load, outcomes


async def naive() -> Load:
    port = free_port()
    _, files = source()

    async def start() -> str:
        return await run(
            *("docker", "run", "--detach", "--init", "--env", "PORT=8080"),
            *("--publish", f"127.0.0.1:{port}:8080", IMAGE, "python3", "-c", files["app.py"]),
        )

    container = await start()
    try:
        async with Load(port, "localhost", connections=CONNECTIONS) as load:
            for _ in range(NAIVE_SWITCHES):
                await load.more(500)
                await run("docker", "rm", "--force", container)
                container = await start()
            await load.more(500)
    finally:
        await run("docker", "rm", "--force", container)
    return load


async def main() -> int:
    configure_logging("warning")
    with scratch() as folder:
        async with platform(folder, "bench") as here, here.customer() as customer:
            await _pay(customer)
            load, outcomes = await rolling(customer, _port(here))
        by_hand = await naive()
    turned_down = [number for number, status in enumerate(outcomes, 1) if status != "running"]
    return report(
        [
            at_most("rolling.failed_requests", load.failed, 0, f"of {load.total}; {dict(load.answers)}"),
            at_least("rolling.requests", load.total, REQUESTS),
            at_least("rolling.sick_releases_turned_down", int(turned_down == [SICK]), 1, f"{outcomes}"),
            at_least("rolling.naive_failed_requests", by_hand.failed, 1, f"of {by_hand.total}"),
        ]
    )


async def _pay(customer: Customer) -> None:
    await customer.log_in(*ADMIN)
    await customer.found("Bench")
    credits = f"/api/admin/organizations/{customer.organization}/credits"
    await customer.call("POST", credits, json={"amount": "100"})
    await asyncio.sleep(1)


def _port(here: Platform) -> int:
    port = httpx.URL(here.ingress).port
    assert port is not None
    return port


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
