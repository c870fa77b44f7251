"""What the whole platform makes of an engine and a builder that fail."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from contracts.errors import ProviderFailed, Unavailable
from contracts.events import RolloutFinished

from tests.customer import Customer, archive
from tests.harness import Harness, eventually
from tests.world import NODE, World, world

SOURCE = archive({"Dockerfile": "FROM berth/python:3.11\nRUN echo built\n"})


@pytest.fixture
async def here(harness: Harness, tmp_path: Path) -> AsyncIterator[World]:
    async with world(harness, tmp_path) as opened:
        yield opened
        # The services go first; the engine and the proxy they hold on to after them.
        await harness.close_services()


@pytest.fixture
async def customer(here: World) -> AsyncIterator[Customer]:
    async with here.customer() as found:
        await found.register("somebody@example.org")
        await here.paying(found, "0.01")
        yield found


async def test_a_deployment_goes_all_the_way(here: World, customer: Customer) -> None:
    _, view = await customer.live("shop", SOURCE)
    response = await customer.visit(httpx.URL(view["url"]).host)
    assert response.status_code == 200
    assert response.text.strip().startswith("ins_")


async def test_an_engine_that_fails_for_a_moment_delays_and_loses_nothing(
    here: World, customer: Customer
) -> None:
    here.engine.fail_next("create", Unavailable("the engine is busy"))
    here.engine.fail_next("start", Unavailable("the engine is busy"))
    _, view = await customer.live("shop", SOURCE)
    assert view["status"] == "running"


async def test_a_builder_that_fails_for_a_moment_tries_again(here: World, customer: Customer) -> None:
    here.images.fail_next("build", ProviderFailed("the engine went away"))
    _, view = await customer.live("shop", SOURCE)
    assert view["status"] == "running"
    assert len(here.images.builds) == 2


async def test_an_instance_that_dies_comes_back_and_is_still_one(here: World, customer: Customer) -> None:
    _, view = await customer.live("shop", SOURCE)
    hostname = httpx.URL(view["url"]).host
    [instance] = await here.engine.instances()
    await here.engine.die(instance.identity.instance)
    await customer.answers(hostname, instance.identity.instance)
    assert len(await here.engine.instances()) == 1


async def test_what_does_not_start_on_a_machine_made_anew_says_why_and_comes_up_when_it_can(
    here: World, customer: Customer
) -> None:
    """The platform knows that it has lived, and the node knows nothing: as where an app is moved to."""
    app, view = await customer.live("shop", SOURCE)
    await here.harness.stop(NODE)
    [instance] = await here.engine.instances()
    await here.engine.remove(instance.identity.instance)
    await asyncio.to_thread(shutil.rmtree, here.harness.settings.state / "nodes" / "local")
    for _ in range(2):
        here.engine.fail_next("create", ProviderFailed("no memory is left"))
    await here.join(NODE)
    fallen = await customer.status(app, "failed", seconds=30)
    assert fallen["reason"] == "local: web.1 could not be started: no memory is left"
    risen = await customer.status(app, "running", seconds=60)
    assert risen["reason"] is None
    await customer.answers(httpx.URL(view["url"]).host, "ins_")
    told = (await customer.call("GET", f"/api/paas/apps/{app}/activity"))["activity"]
    assert [one["kind"] for one in told if one["kind"] in ("failed", "recovered")] == ["recovered", "failed"]


@pytest.mark.promise("R15.5")
async def test_an_empty_wallet_suspends_and_money_brings_the_app_back(
    here: World, customer: Customer
) -> None:
    app, view = await customer.live("shop", SOURCE)
    # Two whole hours at least are over then, whatever the minute; the wallet lasts for one and a bit.
    here.harness.clock.advance(3 * 3600)
    suspended = await customer.status(app, "suspended", seconds=60)
    assert "wallet" in suspended["reason"].lower() or "balance" in suspended["reason"].lower()
    hostname = httpx.URL(view["url"]).host
    await customer.silent(hostname)
    await here.paying(customer, "5")
    await customer.call("POST", f"/api/paas/apps/{app}/start")
    await customer.status(app, "running")
    await customer.answers(hostname, "ins_")


async def test_the_loss_of_the_bus_s_disk_heals(here: World, customer: Customer) -> None:
    _, view = await customer.live("shop", SOURCE)
    js = here.harness.client.jetstream()
    for stream in ("EVENTS", "KV_desired", "KV_routes", "KV_endpoints"):
        await js.delete_stream(stream)
    app = await customer.create("after")
    await customer.upload(app, SOURCE)

    async def deployed() -> bool:
        ended = await customer.ended(await customer.deploy(app), seconds=60)
        return bool(ended["status"] == "running")

    await eventually(deployed, seconds=90, what="a deployment after the loss")
    await customer.answers(httpx.URL(view["url"]).host, "ins_")
    assert len(await here.harness.events(RolloutFinished)) >= 1
