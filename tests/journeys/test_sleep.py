"""An app that nobody asks for sleeps, costs nothing, and wakes for the first request: on the real engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from runtime.permissions import SERVICES

from tests.customer import Customer, hello
from tests.harness import eventually
from tests.platform import ADMIN, Platform, platform

# Three seconds; its node looks every two.
AFTER = {"after_minutes": 0.05}
SETTINGS = {
    "GATEWAY_LEAST_SLEEP_MINUTES": "0.01",
    "BILLING_PERIOD_SECONDS": "4",
    "NODE_AGENT_HEARTBEAT_SECONDS": "1",
}


@pytest.fixture
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    """The node has a process of its own: what stops the platform does not stop it."""
    folder = tmp_path_factory.mktemp("sleep")
    async with platform(folder, "sleep", SERVICES, ["node-agent"], **SETTINGS) as opened:
        yield opened


@pytest.mark.promise("R12.2")
async def test_an_app_sleeps_and_wakes_for_a_request(here: Platform) -> None:
    async with here.customer() as customer:
        await customer.log_in(*ADMIN)
        await customer.found("Sleepers")
        await customer.call(
            "POST", f"/api/admin/organizations/{customer.organization}/credits", json={"amount": "0.05"}
        )
        await customer.call("PATCH", "/api/admin/paas/plans/small", json={"sleeping": True})
        app, view = await customer.live("sleepy", hello("awake"))
        hostname = httpx.URL(view["url"]).host
        await customer.answers(hostname, "awake")
        await customer.call("PUT", f"/api/paas/apps/{app}/sleep", json=AFTER)

        # It sleeps: nothing runs, the meter stands still, and its place on the node is kept.
        await asleep(here, customer, app)
        # Where the word of its end comes after the next charge, some of that is given back.
        await eventually(lambda: stands_still(customer), what="a meter that stands still")
        spent = await settled(customer)
        [node] = (await customer.call("GET", "/api/admin/paas/nodes"))["nodes"]
        assert node["allocated"]["memory_mb"] > 0

        # The first request waits and is answered.
        begun = time.monotonic()
        answer = await customer.visit(hostname)
        waited = time.monotonic() - begun
        assert (answer.status_code, answer.text) == (200, "awake\n")
        print(f"the first request waited {waited:.2f} s")
        assert waited < 10
        await customer.status(app, "running")
        await eventually(lambda: spent_more(customer, spent), what="an open meter")
        kinds = [one["kind"] for one in (await activity(customer, app))]
        assert sorted(kinds) == ["slept", "woke"]

        # A hundred at once wake it once.
        await asleep(here, customer, app)
        answers = await asyncio.gather(*(customer.visit(hostname) for _ in range(100)))
        assert [a.status_code for a in answers] == [200] * 100
        assert len(here.containers()) == 1
        metrics = await eventually(lambda: counted(customer, app, 102), what="the count of requests")
        assert metrics["requests"]["total"] < 120
        [instance] = metrics["instances"]
        assert (instance["process"], instance["node"]) == ("web", "sleep")
        assert 0 < instance["memory_percent"] < 100

        # So it does when the platform is away; which hears of it when it is back.
        await asleep(here, customer, app)
        control = "+".join(SERVICES)
        here.stop(control)
        here.running.nats.stop()
        here.running.postgres.stop()
        begun = time.monotonic()
        answer = await customer.visit(hostname)
        assert (answer.status_code, answer.text) == (200, "awake\n")
        print(f"without the platform it waited {time.monotonic() - begun:.2f} s")
        await asyncio.to_thread(here.running.postgres.start)
        await asyncio.to_thread(here.running.nats.start)
        here.start(*SERVICES)
        await here.ready()
        told = len(await eventually(lambda: told_of(customer, app, 5), what="its nights and mornings"))
        assert told >= 5

        # An app whose owner has no money left is not woken.
        await asleep(here, customer, app)
        dear = {
            "name": "dear",
            "title": "Dear",
            "limits": {"cpu_millis": 200, "memory_mb": 128, "disk_mb": 128},
            "max_replicas": 1,
            "hourly": "60",
            "monthly": "40000",
        }
        await customer.call("POST", "/api/admin/paas/plans", json=dear)
        await customer.live("spender", hello("dear"), plan="dear")
        await customer.status(app, "suspended", seconds=30)
        await eventually(lambda: no_containers(here), seconds=20, what="the end of the other app")
        await customer.silent(hostname)
        assert [(await customer.visit(hostname)).status_code for _ in range(5)] == [503] * 5
        await asyncio.sleep(1)
        assert here.containers() == []


async def asleep(here: Platform, customer: Customer, app: str) -> None:
    await customer.status(app, "sleeping", seconds=40)
    await eventually(lambda: no_containers(here), seconds=20, what="the end of its instance")


async def no_containers(here: Platform) -> bool:
    return not await asyncio.to_thread(here.containers)


async def settled(customer: Customer) -> int:
    """What is left and what of it is spoken for, together: it falls while a meter is open."""
    wallet = await customer.call("GET", "/api/paas/wallet", retry=True)
    return int(wallet["balance"]["micros"]) - int(wallet["accrued"]["micros"])


async def stands_still(customer: Customer) -> bool:
    before = await settled(customer)
    await asyncio.sleep(3)
    return await settled(customer) == before


async def spent_more(customer: Customer, than: int) -> bool:
    return await settled(customer) < than


async def activity(customer: Customer, app: str) -> list[dict[str, Any]]:
    page = await customer.call("GET", f"/api/paas/apps/{app}/activity", retry=True)
    found: list[dict[str, Any]] = page["activity"]
    return found


async def told_of(customer: Customer, app: str, least: int) -> list[dict[str, Any]] | None:
    found = await activity(customer, app)
    return found if len(found) >= least else None


async def counted(customer: Customer, app: str, least: int) -> dict[str, Any] | None:
    found: dict[str, Any] = await customer.call("GET", f"/api/paas/apps/{app}/metrics", retry=True)
    return found if found["requests"]["total"] >= least and found["instances"] else None
