"""Builds as customers and the administrator see them: the queue, its end, the cache, the limits."""

from datetime import UTC, datetime

import pytest
from contracts.build_queries import OpenBuild
from contracts.events import DeploymentCancelled
from contracts.ids import new_id
from contracts.workload import BuildCancelled
from gateway import allowances
from runtime.store import PLATFORM

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World, finished, started, succeeded


async def deployment_of(customer: Customer, deployment: str) -> dict[str, object]:
    found: dict[str, object] = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    return found


async def told(here: World, deployment: str) -> DeploymentCancelled:
    return await here.harness.event(DeploymentCancelled, lambda e: e.deployment == deployment)


def build(deployment: str, position: int | None, **more: str) -> OpenBuild:
    values = {"workload": new_id("app"), "organization": new_id("org"), **more}
    return OpenBuild(
        build=new_id("bld"),
        deployment=deployment,
        app_name="shop",
        state="building" if position is None else "queued",
        position=position,
        attempts=int(position is None),
        queued_at=datetime.now(UTC),
        started_at=None,
        **values,
    )


@pytest.mark.parametrize("under_way", [False, True])
async def test_a_deployment_is_cancelled(here: World, customer: Customer, under_way: bool) -> None:
    app = await customer.create(f"regret-{under_way}".lower())
    deployment = await customer.deploy(app, SOURCE)
    request = await here.requested(deployment)
    if under_way:
        await here.say(started(request))
    path = f"/api/paas/apps/{app}/deployments/{deployment}/cancel"
    view = await customer.call("POST", path)
    assert (view["status"], view["reason"]) == ("cancelled", "cancelled on request")
    assert view["finished_at"]
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "created"
    cancelled = await told(here, deployment)
    assert (cancelled.workload, cancelled.organization) == (app, customer.organization)
    with pytest.raises(Refused, match="can no longer be cancelled") as refused:
        await customer.call("POST", path)
    assert refused.value.status == 409
    # Whatever the builder was about to say when it heard of it.
    await here.say(started(request), finished(request, succeeded()))
    assert (await deployment_of(customer, deployment))["status"] == "cancelled"


async def test_a_cancelled_deployment_leaves_what_runs(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "steady")
    deployment = await customer.deploy(app)
    await customer.call("POST", f"/api/paas/apps/{app}/deployments/{deployment}/cancel")
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["reason"], view["deployment"]) == ("running", None, spec.deployment)


async def test_what_a_builder_gives_up_is_cancelled(here: World, customer: Customer) -> None:
    app = await customer.create("given-up")
    request = await here.requested(await customer.deploy(app, SOURCE))
    await here.say(finished(request, BuildCancelled(message="a newer deployment was asked for")))
    view = await deployment_of(customer, request.deployment)
    assert (view["status"], view["reason"]) == ("cancelled", "a newer deployment was asked for")


async def test_builds_that_are_of_no_use_any_more_are_called_off(here: World, customer: Customer) -> None:
    app = await customer.create("hasty")
    first = await customer.deploy(app, SOURCE)
    second = await customer.deploy(app)
    assert (await told(here, first)).reason == "a newer deployment was asked for"
    assert (await deployment_of(customer, first))["status"] == "superseded"
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    assert (await told(here, second)).reason == "the app was stopped"


@pytest.mark.promise("P10")
async def test_a_customer_sees_his_place_in_the_queue(here: World, customer: Customer) -> None:
    app = await customer.create("patient")
    deployment = await customer.deploy(app, SOURCE)
    here.parts.queue = [build(new_id("dep"), None), build(new_id("dep"), 1), build(deployment, 2)]
    assert (await deployment_of(customer, deployment))["position"] == 2
    of_app = await customer.call("GET", f"/api/paas/apps/{app}/deployments/{deployment}")
    assert of_app["position"] == 2
    here.parts.away = True
    try:
        assert (await deployment_of(customer, deployment))["position"] is None
    finally:
        here.parts.away = False
    await here.say(started(await here.requested(deployment)))
    assert (await deployment_of(customer, deployment))["position"] is None


@pytest.mark.promise("P10")
async def test_the_administrator_sees_every_open_build(here: World, customer: Customer) -> None:
    here.parts.queue = [build(new_id("dep"), None)] + [build(new_id("dep"), n) for n in range(1, 61)]
    admin = await here.administrator()
    page = await admin.call("GET", "/api/admin/builds")
    assert (page["running"], page["waiting"], len(page["builds"]), page["next"]) == (1, 60, 50, "50")
    first, second = page["builds"][:2]
    assert (first["state"], first["position"], first["app_name"]) == ("building", None, "shop")
    assert (second["state"], second["position"]) == ("queued", 1)
    rest = await admin.call("GET", "/api/admin/builds?after=50")
    assert (len(rest["builds"]), rest["next"]) == (11, None)
    here.parts.queue = []
    with pytest.raises(Refused) as refused:
        await customer.call("GET", "/api/admin/builds")
    assert refused.value.status == 403


@pytest.mark.promise("U12")
async def test_the_cache_is_cleared_and_switched_off(here: World, customer: Customer) -> None:
    app = await customer.create("cached")

    async def next_cache() -> int | None:
        return (await here.requested(await customer.deploy(app, SOURCE))).cache

    first = await next_cache()
    assert first == await next_cache() == 0
    await customer.call("DELETE", f"/api/paas/apps/{app}/cache")
    assert await next_cache() == 1
    admin = await here.administrator()
    assert await admin.call("GET", "/api/admin/builds/cache") == {"enabled": True}
    await admin.call("PUT", "/api/admin/builds/cache", json={"enabled": False})
    try:
        assert await next_cache() is None
    finally:
        await admin.call("PUT", "/api/admin/builds/cache", json={"enabled": True})
    assert await next_cache() == 1


@pytest.mark.promise("P26")
async def test_an_organization_may_ask_for_so_many_builds_an_hour(here: World, customer: Customer) -> None:
    app = await customer.create("eager")
    neighbour = await here.customer()
    organization, per_hour = customer.organization, 120
    assert organization is not None
    # Gateways count together: what this transaction uses up, the door's does not have.
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        for _ in range(per_hour):
            await allowances.spend(tx, organization, "build", per_hour)
    with pytest.raises(Refused, match="120 builds an hour") as refused:
        await customer.deploy(app, SOURCE)
    assert (refused.value.status, refused.value.error["code"]) == (429, "quota_exceeded")
    assert 25 <= refused.value.error["details"]["retry_after"] <= 30
    response = await customer.client.post(f"/api/paas/apps/{app}/deploy", headers=customer.headers)
    assert 25 <= int(response.headers["Retry-After"]) <= 30
    assert (await customer.call("GET", f"/api/paas/apps/{app}/deployments"))["deployments"] == []
    await neighbour.deploy(await neighbour.create("calm"), SOURCE)
