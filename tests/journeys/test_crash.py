"""I1, I2, I3, I6: whatever is killed at whatever moment, every accepted request comes to its end, once.

Each service is a process of its own. While deployments are under way, each of them, NATS and Postgres are
killed in a random order and started again.
"""

import asyncio
import random
from functools import partial
from typing import Any

import httpx
import pytest
from psycopg import AsyncConnection

from tests.customer import Customer, hello
from tests.harness import eventually
from tests.platform import ADMIN, EVERYTHING, Platform, platform

APPS = 20
AT_ONCE = 5


@pytest.mark.promise("D1")
async def test_everything_accepted_comes_to_its_end_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # a failure replays with it
    chance = random.Random(seed)
    groups = [[name] for name in EVERYTHING]
    settings = {
        "BERTH_LOG_LEVEL": "info",
        "BILLING_PERIOD_SECONDS": "5",
        "BUILDER_LEASE_SECONDS": "5",
        "NODE_AGENT_CPU_MILLIS": "20000",
    }
    async with (
        platform(tmp_path_factory.mktemp("crash"), "crash", *groups, **settings) as here,
        here.customer() as customer,
    ):
        await customer.log_in(*ADMIN)
        await customer.found("The operator's own")
        await customer.call(
            "POST", f"/api/admin/organizations/{customer.organization}/credits", json={"amount": "50"}
        )
        chaos = asyncio.create_task(kill_everything(here, chance))
        gate = asyncio.Semaphore(AT_ONCE)
        deployments = await asyncio.gather(*(deploy(customer, f"storm-{n}", gate) for n in range(APPS)))
        await chaos
        await here.ready()
        for app, deployment in deployments:
            ended = await customer.ended(deployment, seconds=180)
            assert ended["status"] == "running", (ended, seed)
            await customer.status(app, "running", seconds=60)
            view = await eventually(partial(with_address, customer, app), seconds=60, what="its address")
            await customer.answers(httpx.URL(view["url"]).host, f"app {view['name']}", seconds=60)
        await eventually(
            lambda: one_container_each(here, [app for app, _ in deployments]),
            seconds=60,
            what=f"one container for each app (seed {seed})",
        )

        for app, _ in deployments[: APPS // 2]:
            await customer.call("DELETE", f"/api/paas/apps/{app}", retry=True)
        left = [app for app, _ in deployments[APPS // 2 :]]
        await eventually(lambda: one_container_each(here, left), seconds=60, what="no orphan container")
        for app in left:
            await customer.call("POST", f"/api/paas/apps/{app}/stop", retry=True)
        await eventually(lambda: nothing_runs(here), seconds=60, what="everything stopped")
        await money_is_conserved(here, customer, seed)


async def deploy(customer: Customer, name: str, gate: asyncio.Semaphore) -> tuple[str, str]:
    """A client that repeats what was not answered, as clients do; the answered is what counts."""
    async with gate:
        app = await create_once(customer, name)
        deployment = await customer.deploy(app, hello(f"app {name}"), retry=True)
        await asyncio.sleep(1.5)
        return app, deployment


async def create_once(customer: Customer, name: str) -> str:
    """An answer lost on the way leaves the app there: then the second try finds the name taken, by us."""

    async def attempt() -> str | None:
        listed = await customer.call("GET", "/api/paas/apps", retry=True)
        known = {app["name"]: app["id"] for app in listed["apps"]}
        if name in known:
            return str(known[name])
        try:
            return await customer.create(name)
        except (httpx.TransportError, AssertionError):
            return None

    return await eventually(attempt, seconds=60, every=0.5, what=f"app {name}")


async def with_address(customer: Customer, app: str) -> Any:
    """It may run before domains, which was killed as well, has said what it is called."""
    view = await customer.call("GET", f"/api/paas/apps/{app}", retry=True)
    return view if view["url"] else None


async def kill_everything(here: Platform, chance: random.Random) -> None:
    victims = [*EVERYTHING, "nats", "postgres", "builder", "node-agent"]
    chance.shuffle(victims)
    for victim in victims:
        await asyncio.sleep(chance.uniform(0.3, 2.0))
        here.kill(victim)
        await asyncio.sleep(chance.uniform(0.1, 1.5))
        await here.revive(victim)


async def one_container_each(here: Platform, apps: list[str]) -> bool:
    found = await asyncio.to_thread(here.containers)
    return sorted(c.labels["berth.workload"] for c in found) == sorted(apps) and all(
        c.status == "running" for c in found
    )


async def nothing_runs(here: Platform) -> bool:
    return all(c.status != "running" for c in await asyncio.to_thread(here.containers))


async def money_is_conserved(here: Platform, customer: Customer, seed: int) -> None:
    """The ledger sums to zero, the wallet is its entries, no meter is open and no slot paid twice."""
    async with await AsyncConnection.connect(here.running.postgres.url(), autocommit=True) as connection:
        await connection.execute("set search_path = billing")

        async def number(sql: str) -> int:
            row = await (await connection.execute(sql)).fetchone()
            assert row is not None
            return int(row[0])

        async def all_closed() -> bool:
            return await number("select count(*) from span where stopped_at is null") == 0

        async def all_charged() -> bool:
            wallet = await customer.call("GET", "/api/paas/wallet", retry=True)
            return bool(wallet["accrued"]["micros"] == 0)

        await eventually(all_closed, seconds=60, what=f"the end of every meter (seed {seed})")
        await eventually(all_charged, seconds=60, what=f"the last charges (seed {seed})")
        assert await number("select coalesce(sum(micros), 0) from entry") == 0, seed
        assert await number("select count(*) from charge") > 0, seed
        wallet = await customer.call("GET", "/api/paas/wallet")
        # There is one organization, so one wallet.
        entries = await number("select sum(micros) from entry where account = 'wallet'")
        assert wallet["balance"]["micros"] == entries, seed
        # No slot was paid for longer than it existed.
        paid_twice = await number(
            "select count(*) from ("
            "  select s.workload, s.process, s.index, sum(c.seconds) as paid,"
            "    extract(epoch from max(s.stopped_at) - min(s.started_at)) as existed"
            "  from (select workload, process, index, min(started_at) as started_at,"
            "          max(stopped_at) as stopped_at from span group by 1, 2, 3) s"
            "  join charge c on c.workload = s.workload group by 1, 2, 3"
            ") slot where paid > existed + 1"
        )
        assert paid_twice == 0, seed
