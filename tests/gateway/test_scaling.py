"""The size of an app: what there is to choose, what it would cost, and the change of a plan."""

import pytest

from tests.customer import Customer, Refused
from tests.gateway.world import World


@pytest.mark.promise("R17.1", "R18.1", "U13")
async def test_scaling_shows_what_is_what_could_be_and_what_it_costs(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "sized")
    assert customer.organization is not None
    await here.balance(customer.organization, 10_000_000, sequence=1)
    seen = await customer.call("GET", f"/api/paas/apps/{app}/scaling?replicas=3")
    plan = {p["name"]: p for p in (await customer.call("GET", "/api/paas/plans"))["plans"]}["small"]
    price = plan["hourly"]["micros"]
    assert (seen["plan"], seen["replicas"], seen["processes"]) == ("small", 1, {"web": 1})
    assert seen["max_replicas"] == plan["max_replicas"]
    assert seen["now"]["hourly"]["micros"] == price
    assert seen["projected"]["hourly"]["micros"] == 3 * price
    assert seen["projected"]["balance"]["micros"] == 10_000_000
    assert seen["projected"]["hours_left"] == round(10_000_000 / (3 * price), 1)
    directions = {choice["name"]: choice["direction"] for choice in seen["plans"]}
    assert directions["small"] == "current"
    assert directions["medium"] == "upgrade"
    # And both are enforced.
    with pytest.raises(Refused, match=f"allows {plan['max_replicas']} instances"):
        await customer.call(
            "POST", f"/api/paas/apps/{app}/scale", json={"replicas": plan["max_replicas"] + 1}
        )
    await here.balance(customer.organization, -1, sequence=2)
    with pytest.raises(Refused, match="wallet is empty"):
        await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"replicas": 2})


@pytest.mark.promise("R18.2")
async def test_another_plan_means_other_limits_and_another_rate(here: World, customer: Customer) -> None:
    app, before = await here.live(customer, "upgraded")
    seen = await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "medium"})
    assert seen["plan"] == "medium"
    spec = await here.spec(app)
    assert (spec.plan, spec.generation) == ("medium", before.generation + 1)
    assert spec.limits.memory_mb > before.limits.memory_mb
    assert spec.rate.micros_per_hour == 20_500
    assert spec.fingerprint() != before.fingerprint()
    # The same again is no change.
    await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "medium"})
    assert (await here.spec(app)).generation == spec.generation


async def test_a_smaller_plan_is_refused_while_the_app_does_not_fit(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "too-large", plan="medium")
    admin = await here.administrator()
    body = {
        "name": "tiny",
        "title": "Tiny",
        "limits": {"cpu_millis": 100, "memory_mb": 64, "disk_mb": 64},
        "max_replicas": 1,
        "volume_mb": 32,
        "hourly": "0.001",
        "monthly": "0.5",
    }
    await admin.call("POST", "/api/admin/paas/plans", json=body)
    await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"replicas": 2})
    volume = {"name": "data", "path": "/data", "size_mb": 64}
    await customer.call("POST", f"/api/paas/apps/{app}/volumes", json=volume)
    with pytest.raises(Refused) as refused:
        await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "tiny"})
    assert "it has 2 instances and the plan allows 1" in str(refused.value)
    assert "its volumes have 64 MB and the plan allows 32 MB" in str(refused.value)
    shown = await customer.call("GET", f"/api/paas/apps/{app}/scaling")
    (tiny,) = [choice for choice in shown["plans"] if choice["name"] == "tiny"]
    assert (tiny["direction"], len(tiny["obstacles"])) == ("downgrade", 2)
    await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"replicas": 1})
    await customer.call("DELETE", f"/api/paas/apps/{app}/volumes/data")
    assert (await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "tiny"}))["plan"] == "tiny"
