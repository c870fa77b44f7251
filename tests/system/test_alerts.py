"""What the administrator is told of: a node that is gone, one that is full, an app that is down and one that
is restarted again and again; each once, for what it is, and that it is over."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from contracts.events import AppChanged
from contracts.queries import SilentAfter

from tests.customer import Customer, archive
from tests.harness import Harness, eventually
from tests.world import ADMIN, Gauge, World, world

DOCKERFILE = "FROM berth/python:3.11\nEXPOSE 8000\n"
SERVES = archive({"Dockerfile": DOCKERFILE})
RECOVERED = archive({"Dockerfile": DOCKERFILE + "RUN echo recovered\n"})
IMPATIENT = {"interval_seconds": 1, "timeout_seconds": 1, "start_seconds": 1}
# Silent for so long, a node is offline.
SILENCE = 6


@pytest.fixture
async def here(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("SCHEDULER_OFFLINE_SECONDS", str(SILENCE))
    async with world(harness, tmp_path) as opened:
        yield opened
        await harness.close_services()


async def alerts(administrator: Customer, query: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await administrator.call("GET", f"/api/admin/alerts{query}"))["alerts"]
    return found


async def standing(administrator: Customer) -> list[tuple[str, str]]:
    """What each is about, and its title."""
    found = await alerts(administrator, "?standing=true")
    assert all(one["over_at"] is None for one in found)
    return sorted((one["details"].get("app") or one["details"]["node"], one["title"]) for one in found)


async def stand(administrator: Customer, wanted: list[tuple[str, str]]) -> None:
    async def look() -> bool:
        return await standing(administrator) == wanted

    try:
        await eventually(look, seconds=30, what="the alerts")
    finally:
        assert await standing(administrator) == wanted


async def later(here: World, seconds: float, *, silent: set[str]) -> None:
    """What is done again and again is done then, once nodes have said that just these are silent."""
    here.harness.clock.advance(seconds)
    gateway = here.harness.hosts["gateway"]

    async def said() -> bool:
        return set((await gateway.runtime.bus.ask(SilentAfter())).workloads) == silent

    await eventually(said, seconds=20, what=f"silence of {silent}")
    loops = {loop.name: loop for loop in gateway.service.loops}
    await loops["silence"].work()
    await loops["outages"].work()


async def fall_silent(here: World, app: str) -> None:
    """Its instance answers no more, and so does every one that takes its place."""
    [instance] = await here.engine.instances(app)
    [image] = {
        e.spec.image for e in await here.harness.events(AppChanged) if e.spec.id == app and e.spec.image
    }
    here.engine.images[image] = "mute"
    await here.engine.deafen(instance.identity.instance)


async def crash(here: World, customer: Customer, app: str) -> None:
    """Its instance ends; once it is back, it has been told of."""
    [(engine, instance)] = [
        (engine, one.identity.instance)
        for engine in here.engines.values()
        for one in await engine.instances(app)
    ]
    await engine.die(instance)

    async def back() -> bool:
        return [one.state for one in await engine.instances(app)] == ["running"]

    await eventually(back, what="the instance again")


@pytest.mark.promise("K10")
async def test_each_trouble_is_told_once_for_what_it_is_and_that_it_is_over(
    here: World, tmp_path: Path
) -> None:
    gauge = Gauge(tmp_path, cpu_millis=4000)
    async with here.customer() as administrator, here.customer() as customer:
        await administrator.log_in(*ADMIN)
        await customer.register("somebody@example.org")
        await here.paying(customer)
        steady, _ = await customer.live("steady", SERVES)
        restless, _ = await customer.live("restless", SERVES)
        fallen, _ = await customer.live("fallen", SERVES, health=IMPATIENT)
        # The apps are not on these, which have troubles of their own.
        await here.join("n1", machine=gauge.machine)
        await here.join("n2")
        for _ in range(2):
            await crash(here, customer, restless)
        gauge.uses(0.8)
        await asyncio.sleep(3)
        await later(here, 0, silent=set())
        assert await alerts(administrator) == []

        gauge.uses(0.95)
        await here.harness.stop("n2")
        await fall_silent(here, fallen)
        for _ in range(3):
            await crash(here, customer, restless)
        await later(here, 0, silent={fallen})
        await later(here, 301, silent={fallen})
        troubles = sorted(
            [
                ("n1", "Node n1 is at 95% of its memory"),
                ("n2", "Node n2 is offline"),
                (fallen, "App fallen has been down for 5 minutes"),
                (restless, "App restless is restarted again and again"),
            ]
        )

        await stand(administrator, troubles)
        # They stand, and get no better: nobody is told again.
        gauge.uses(0.99)
        await crash(here, customer, restless)
        await later(here, 301, silent={fallen})
        await asyncio.sleep(SILENCE + 3)
        await here.harness.settle()
        told = await alerts(administrator)
        assert len(told) == 4
        assert await standing(administrator) == troubles

        gauge.uses(0.5)
        await here.join("n2")
        await customer.ended(await customer.deploy(fallen, RECOVERED))
        await later(here, 3601, silent=set())

        await stand(administrator, [])
        ends = {one["id"]: one["over_at"] for one in await alerts(administrator)}
        assert all(ends[one["id"]] > one["at"] for one in told)
        assert len(ends) == 8
        assert (await customer.call("GET", f"/api/paas/apps/{steady}"))["status"] == "running"
