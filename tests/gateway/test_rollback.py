"""Going back: an earlier release runs again, as a deployment of its own and without a build."""

import pytest
from contracts.events import DeploymentCancelled, DeploymentRequested
from contracts.ids import new_id

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World, decided, finished, rollout, succeeded


async def back(customer: Customer, app: str, **body: str) -> dict[str, object]:
    found: dict[str, object] = await customer.call("POST", f"/api/paas/apps/{app}/rollback", json=body)
    return found


async def test_the_release_before_runs_again(here: World, customer: Customer) -> None:
    app, first = await here.live(customer, "undone", replicas=2)
    await here.log(first.deployment or "", 1, 2, 3)
    second = await here.build(
        await customer.deploy(app), processes={"web": "new", "clock": "tick"}, port=7000
    )
    await here.roll_out(second)
    begun = await back(customer, app)
    assert (begun["status"], begun["number"], begun["rollback_of"]) == ("deploying", 3, first.deployment)
    assert begun["notes"] == ["brings back deployment 1 with 2 of web"]
    spec = await here.spec(app)
    assert (spec.image, spec.port, spec.deployment) == (first.image, first.port, begun["id"])
    assert spec.processes == first.processes
    assert spec.release not in (first.release, second.release)
    await here.roll_out(spec)
    shown = await customer.call("GET", f"/api/paas/deployments/{begun['id']}")
    assert (shown["status"], shown["image"]) == ("running", first.image)
    assert shown["finished_at"] is not None
    # Nothing was built, and what was said of the build is this one's log too.
    requested = await here.harness.events(DeploymentRequested)
    assert begun["id"] not in [event.deployment for event in requested]
    log = await customer.call("GET", f"/api/paas/deployments/{begun['id']}/log")
    assert [line["sequence"] for line in log["lines"]] == [1, 2, 3]
    async for kind, data in customer.log(str(begun["id"])):
        if kind == "end":
            assert data["status"] == "running"
    # From there back again is forward; one that goes back to it leads to what was built.
    again = await back(customer, app, deployment=str(second.deployment))
    assert again["rollback_of"] == second.deployment
    await here.roll_out(await here.spec(app))
    assert (await back(customer, app, deployment=str(begun["id"])))["rollback_of"] == first.deployment


async def test_what_comes_back_finds_the_room_its_plan_has_left(here: World, customer: Customer) -> None:
    """What was chosen of a process that was not there since, was chosen beside others."""
    plan = {p["name"]: p for p in (await customer.call("GET", "/api/paas/plans"))["plans"]}["medium"]
    most = plan["max_replicas"]
    app = await customer.create("crowded", plan="medium")
    both = {"web": "serve", "worker": "work"}
    await here.roll_out(await here.build(await customer.deploy(app, SOURCE), processes=both))
    path = f"/api/paas/apps/{app}/scale"
    await customer.call("POST", path, json={"process": "worker", "replicas": most - 1})
    await here.roll_out(await here.spec(app))
    await here.roll_out(await here.build(await customer.deploy(app), processes={"web": "serve"}))
    await customer.call("POST", path, json={"replicas": most - 1})
    await here.roll_out(await here.spec(app))
    begun = await back(customer, app)
    assert begun["notes"] == [
        f"brings back deployment 1 with {most - 1} of web, 1 of worker",
        f"the process worker comes back with 1 of {most - 1} instances: its plan has no room",
    ]
    spec = await here.spec(app)
    assert {name: p.replicas for name, p in spec.processes.items()} == {"web": most - 1, "worker": 1}
    await here.roll_out(spec)
    # So does one that takes the place of a release that does not live.
    failing = await here.build(await customer.deploy(app), processes={"web": "serve"})
    await customer.call("POST", path, json={"replicas": most})
    failing = await here.spec(app)
    await here.say(decided(failing, "local"), rollout(failing, ok=False, reason="exit 1"))
    spec = await here.spec(app)
    assert {name: p.replicas for name, p in spec.processes.items()} == {"web": most, "worker": 0}


async def test_one_that_does_not_live_gives_way(here: World, customer: Customer) -> None:
    app, first = await here.live(customer, "unlucky")
    second = await here.build(await customer.deploy(app))
    await here.roll_out(second)
    begun = await back(customer, app)
    spec = await here.spec(app)
    await here.say(decided(spec, "local"), rollout(spec, ok=False, running=1, reason="exit 1"))
    assert (await customer.call("GET", f"/api/paas/deployments/{begun['id']}"))["status"] == "failed"
    assert (await here.spec(app)).image == second.image
    assert first.image != second.image


async def test_what_is_under_way_ends(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "hasty")
    await here.roll_out(await here.build(await customer.deploy(app)))
    waiting = await customer.deploy(app)
    await back(customer, app)
    assert (await customer.call("GET", f"/api/paas/deployments/{waiting}"))["status"] == "superseded"
    assert await here.harness.event(DeploymentCancelled, lambda e: e.deployment == waiting)


async def test_one_that_never_lived_is_passed_over(here: World, customer: Customer) -> None:
    app, first = await here.live(customer, "choosing")
    migrating = await here.requested(await customer.deploy(app))
    await here.say(finished(migrating, succeeded(processes={"web": "new", "release": "migrate"})))
    await here.roll_out(await here.build(await customer.deploy(app)))
    assert (await back(customer, app))["rollback_of"] == first.deployment


async def test_no_image_from_elsewhere_where_those_are_switched_off(here: World, customer: Customer) -> None:
    app = await customer.create("foreign", image={"reference": "registry.example.org/shop/app:1"})
    deployment = (await customer.call("POST", f"/api/paas/apps/{app}/deploy"))["id"]
    await here.roll_out(await here.build(deployment))
    await here.roll_out(await here.build(await customer.deploy(app, SOURCE)))
    administrator = await here.administrator()
    await administrator.call("PUT", "/api/admin/paas/custom-images", json={"enabled": False})
    try:
        with pytest.raises(Refused, match="switched off"):
            await back(customer, app)
    finally:
        await administrator.call("PUT", "/api/admin/paas/custom-images", json={"enabled": True})
    assert (await back(customer, app))["rollback_of"] == deployment


async def test_what_cannot_be_gone_back_to(here: World, customer: Customer) -> None:
    fresh = await customer.create("fresh")
    with pytest.raises(Refused, match="deploy it first"):
        await back(customer, fresh)
    app, first = await here.live(customer, "rooted")
    with pytest.raises(Refused, match="no earlier deployment"):
        await back(customer, app)
    with pytest.raises(Refused, match="is what runs"):
        await back(customer, app, deployment=str(first.deployment))
    with pytest.raises(Refused, match="no such deployment"):
        await back(customer, app, deployment=new_id("dep"))
    other, elsewhere = await here.live(customer, "other")
    with pytest.raises(Refused, match="no such deployment"):
        await back(customer, app, deployment=str(elsewhere.deployment))
    unbuilt = await customer.deploy(other, SOURCE)
    with pytest.raises(Refused, match="never built"):
        await back(customer, other, deployment=unbuilt)
    await here.roll_out(await here.build(await customer.deploy(app)))
    here.parts.images[str(first.image)] = False
    with pytest.raises(Refused, match="not kept any more"):
        await back(customer, app)
    with pytest.raises(Refused) as refused:
        await back(customer, app, release="rel_1")
    assert refused.value.status == 422
    assert (await customer.call("GET", f"/api/paas/apps/{app}/deployments"))["deployments"][0]["number"] == 2


async def test_nobody_elses(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "mine")
    stranger = await here.customer()
    with pytest.raises(Refused, match="no such app") as refused:
        await back(stranger, app)
    assert refused.value.status == 404
