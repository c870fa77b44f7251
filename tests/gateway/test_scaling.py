"""The size of an app: what there is to choose, what it would cost, and the change of a plan."""

from datetime import UTC, datetime
from typing import Any

import pytest
from contracts.ids import new_id
from contracts.queries import InstanceUse, Traffic
from gateway.scaling import scale_by_rules
from runtime.store import PLATFORM
from sqlalchemy import text

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World


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


async def test_another_plan_of_the_same_size_means_other_instances(here: World, customer: Customer) -> None:
    app, before = await here.live(customer, "same-size")
    limits = before.limits.model_dump(exclude_none=True)
    body = {"name": "as-small", "title": "As small", "limits": limits, "max_replicas": 2}
    admin = await here.administrator()
    await admin.call("POST", "/api/admin/paas/plans", json={**body, "hourly": "0.001", "monthly": "0.5"})
    await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "as-small"})
    spec = await here.spec(app)
    assert spec.rate.micros_per_hour == 1000
    assert spec.fingerprint() != before.fingerprint()


@pytest.mark.promise("R18.5")
async def test_a_smaller_plan_is_refused_while_the_app_does_not_fit(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "too-large", plan="medium")
    admin = await here.administrator()
    body = {
        "name": "tiny",
        "title": "Tiny",
        "limits": {"cpu_millis": 100, "memory_mb": 64, "memory_request_mb": 32, "disk_mb": 64},
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
    use = {"instance": new_id("ins"), "node": "local", "process": "web", "index": 0, "cpu_millis": 1}
    here.parts.used[app] = (InstanceUse(**use, memory_mb=65, at=datetime.now(UTC)),)
    with pytest.raises(Refused, match="uses 65 MB of memory and the plan allows 64 MB"):
        await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "tiny"})
    here.parts.used[app] = ()
    assert (await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "tiny"}))["plan"] == "tiny"


@pytest.mark.promise("P25")
async def test_an_app_follows_its_rule_where_its_plan_allows(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "follows")
    rule = {"min": 1, "max": 3, "up_seconds": 60, "cooldown_seconds": 0}
    with pytest.raises(Refused, match="does not scale by itself"):
        await customer.call("PUT", f"/api/paas/apps/{app}/autoscaling", json=rule)
    admin = await here.administrator()
    await admin.call("PATCH", "/api/admin/paas/plans/small", json={"autoscaling": True})
    with pytest.raises(Refused, match="choose a smaller max"):
        await customer.call("PUT", f"/api/paas/apps/{app}/autoscaling", json={**rule, "max": 100})
    with pytest.raises(Refused, match="min is larger than max"):
        await customer.call("PUT", f"/api/paas/apps/{app}/autoscaling", json={**rule, "min": 4})
    await customer.call("PUT", f"/api/paas/apps/{app}/autoscaling", json=rule)
    spec = await here.spec(app)

    def uses(cpu_millis: int) -> None:
        here.parts.used[app] = (
            InstanceUse(
                instance=new_id("ins"),
                node="local",
                process="web",
                index=0,
                cpu_millis=cpu_millis,
                memory_mb=1,
                at=datetime.now(UTC),
            ),
        )

    async def look() -> int:
        await scale_by_rules(desk)
        return (await here.spec(app)).replicas()

    desk: Any = here.host.service.http.state.desk  # type: ignore[union-attr]
    uses(spec.limits.cpu_millis * 95 // 100)
    assert (await customer.call("GET", f"/api/paas/apps/{app}/scaling"))["load"] == 95.0
    assert await look() == 1
    here.harness.clock.advance(61)
    assert await look() == 2
    await here.roll_out(await here.spec(app))
    uses(spec.limits.cpu_millis * 10 // 100)
    assert await look() == 2
    here.harness.clock.advance(901)
    assert await look() == 1
    # By requests, under the same rule: 60 a second where an instance is to have 25.
    await customer.call("PUT", f"/api/paas/apps/{app}/autoscaling", json={**rule, "requests_per_second": 25})
    here.parts.traffic[app] = Traffic(requests=9, per_second=60)
    seen = await customer.call("GET", f"/api/paas/apps/{app}/scaling")
    assert (seen["load"], seen["requests_per_second"]) == (192.0, 60.0)
    assert await look() == 1
    here.harness.clock.advance(61)
    assert await look() == 3
    await here.roll_out(await here.spec(app))
    here.parts.traffic[app] = Traffic(requests=9, per_second=3)
    for _ in range(3):
        await look()
        here.harness.clock.advance(901)
    assert await look() == 1
    # Nobody knows what it uses: then it stays as it is.
    here.parts.used.clear()
    here.harness.clock.advance(3600)
    assert await look() == 1
    await customer.call("DELETE", f"/api/paas/apps/{app}/autoscaling")
    assert (await customer.call("GET", f"/api/paas/apps/{app}/scaling"))["autoscale"] is None


async def test_a_rule_stays_within_its_plan(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    limits = {"cpu_millis": 500, "memory_mb": 512, "disk_mb": 1024}
    body = {"title": "By itself", "limits": limits, "hourly": "0.001", "monthly": "0.5"}
    for name, most, autoscaling in (("auto-wide", 4, True), ("auto-narrow", 2, True), ("by-hand", 4, False)):
        plan = {**body, "name": name, "max_replicas": most, "autoscaling": autoscaling}
        await admin.call("POST", "/api/admin/paas/plans", json=plan)
    app = await customer.create("ruled", plan="auto-wide")
    await here.roll_out(
        await here.build(await customer.deploy(app, SOURCE), processes={"web": "serve", "worker": "work"})
    )
    rule = {"min": 1, "max": 4, "up_seconds": 60, "cooldown_seconds": 0, "requests_per_second": 10}
    await customer.call("PUT", f"/api/paas/apps/{app}/autoscaling", json=rule)
    for other, words in (("by-hand", "DELETE …/autoscaling"), ("auto-narrow", "goes up to 4 instances")):
        with pytest.raises(Refused, match=words):
            await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": other})
    # The other processes are part of what the plan allows.
    await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"process": "worker", "replicas": 2})
    await here.roll_out(await here.spec(app))
    desk: Any = here.host.service.http.state.desk  # type: ignore[union-attr]
    here.parts.traffic[app] = Traffic(requests=9, per_second=1000)
    use = {"instance": new_id("ins"), "node": "local", "process": "web", "index": 0, "cpu_millis": 1}
    here.parts.used[app] = (InstanceUse(**use, memory_mb=1, at=datetime.now(UTC)),)

    async def look() -> int:
        for _ in range(3):
            await scale_by_rules(desk)
            here.harness.clock.advance(120)
            await here.roll_out(await here.spec(app))
        return (await here.spec(app)).processes["web"].replicas

    assert await look() == 2
    await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"process": "worker", "replicas": 1})
    await here.roll_out(await here.spec(app))
    await admin.call("PATCH", "/api/admin/paas/plans/auto-wide", json={"autoscaling": False})
    assert await look() == 2
    await admin.call("PATCH", "/api/admin/paas/plans/auto-wide", json={"autoscaling": True})
    assert await look() == 3
    await customer.call("DELETE", f"/api/paas/apps/{app}/autoscaling")
    await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "by-hand"})


async def test_a_rule_that_cannot_be_read_holds_up_no_other(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    limits = {"cpu_millis": 500, "memory_mb": 512, "disk_mb": 1024}
    plan = {"name": "auto-spare", "title": "By itself", "limits": limits, "hourly": "0.001", "monthly": "0.5"}
    await admin.call("POST", "/api/admin/paas/plans", json={**plan, "max_replicas": 2, "autoscaling": True})
    rule = {"min": 1, "max": 2, "up_seconds": 60, "cooldown_seconds": 0, "requests_per_second": 10}
    apps = []
    for number in range(3):
        app, _ = await here.live(customer, f"ruled-{number}", plan="auto-spare")
        await customer.call("PUT", f"/api/paas/apps/{app}/autoscaling", json=rule)
        here.parts.traffic[app] = Traffic(requests=9, per_second=1000)
        use = {"instance": new_id("ins"), "node": "local", "process": "web", "index": 0, "cpu_millis": 1}
        here.parts.used[app] = (InstanceUse(**use, memory_mb=1, at=datetime.now(UTC)),)
        apps.append(app)
    broken = [apps[0], apps[2]]
    change = text("update workload set autoscale = cast(:rule as jsonb) where id = any(:apps)")
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(change, {"rule": "{}", "apps": broken})
    desk: Any = here.host.service.http.state.desk  # type: ignore[union-attr]
    try:
        for _ in range(2):
            await scale_by_rules(desk)
            here.harness.clock.advance(61)
    finally:
        for app in broken:
            await customer.call("DELETE", f"/api/paas/apps/{app}/autoscaling")
    assert (await here.spec(apps[1])).processes["web"].replicas == 2
