"""An app's sleep: whose word it is, what is shown of it, and what the app is asked for."""

from datetime import UTC, datetime, timedelta

import pytest
from contracts.events import SleepChanged
from contracts.ids import new_id
from contracts.queries import InstanceUse, Traffic
from contracts.workload import WorkloadSpec

from tests.customer import Customer, Refused
from tests.gateway.world import World, rollout

WORDS = "it sleeps: no request for 30 minutes"


def said(spec: WorkloadSpec, *, asleep: bool, later: float = 0, node: str = "local") -> SleepChanged:
    at = datetime.now(UTC) + timedelta(seconds=later)
    words = WORDS if asleep else "a request woke it"
    return SleepChanged(
        at=at, node=node, workload=spec.id, organization=spec.organization, asleep=asleep, words=words
    )


async def test_it_sleeps_by_its_owners_order_and_its_nodes_word(here: World, customer: Customer) -> None:
    app, before = await here.live(customer, "sleepy")
    path = f"/api/paas/apps/{app}/sleep"

    async def status() -> str:
        return str((await customer.call("GET", f"/api/paas/apps/{app}"))["status"])

    assert before.sleep_seconds is None
    with pytest.raises(Refused, match="apps of the plan small do not sleep"):
        await customer.call("PUT", path, json={"after_minutes": 30})
    admin = await here.administrator()
    await admin.call("PATCH", "/api/admin/paas/plans/small", json={"sleeping": True})
    with pytest.raises(Refused, match="after 1 minutes at the earliest"):
        await customer.call("PUT", path, json={"after_minutes": 0.5})
    assert (await customer.call("PUT", path, json={"after_minutes": 30})) == {
        "after_minutes": 30,
        "asleep": False,
    }
    spec = await here.spec(app)
    assert (spec.sleep_seconds, spec.fingerprint()) == (1800, before.fingerprint())
    await here.roll_out(spec)
    # Its node's word is shown, the newest of them, whatever comes in which order.
    await here.say(said(spec, asleep=True))
    assert await status() == "sleeping"
    assert (await customer.call("GET", path))["asleep"]
    await here.say(said(spec, asleep=False, later=-60))
    assert await status() == "sleeping"
    await here.say(said(spec, asleep=False, later=1))
    assert await status() == "running"
    noted = (await customer.call("GET", f"/api/paas/apps/{app}/activity"))["activity"]
    assert {(one["kind"], one["words"]) for one in noted} == {
        ("slept", WORDS),
        ("woke", "a request woke it"),
    }
    # A node that settles a new order in its sleep says that it sleeps on.
    await customer.call("PUT", path, json={"after_minutes": 60})
    spec = await here.spec(app)
    await here.roll_out(spec, "other")
    later = datetime.now(UTC) + timedelta(seconds=5)
    await here.say(rollout(spec, "other", at=later, running=0, asleep=True))
    assert await status() == "sleeping"
    # A plan without sleep is none for it.
    with pytest.raises(Refused, match="DELETE …/sleep ends that"):
        await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "medium"})
    await customer.call("DELETE", path)
    assert (await here.spec(app)).sleep_seconds is None


async def test_one_that_sleeps_is_suspended_like_any_other(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "poor")
    admin = await here.administrator()
    await admin.call("PATCH", "/api/admin/paas/plans/small", json={"sleeping": True})
    await customer.call("PUT", f"/api/paas/apps/{app}/sleep", json={"after_minutes": 1})
    spec = await here.spec(app)
    await here.roll_out(spec)
    await here.say(said(spec, asleep=True))
    await here.balance(customer.organization, -1, sequence=1)
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "suspended"
    spec = await here.spec(app)
    # The order by which nothing wakes it.
    assert (spec.state, spec.replicas()) == ("stopped", 0)


async def test_what_an_app_uses_and_is_asked_for(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "measured")
    use = {"instance": new_id("ins"), "node": "local", "process": "web", "index": 0}
    cpu, memory = spec.limits.cpu_millis // 2, spec.limits.memory_mb // 4
    here.parts.used[app] = (InstanceUse(**use, cpu_millis=cpu, memory_mb=memory, at=datetime.now(UTC)),)
    here.parts.traffic[app] = Traffic(
        requests=1200, failed=3, slow=7, seconds=60, per_second=2.5, mean_ms=50.04
    )
    seen = await customer.call("GET", f"/api/paas/apps/{app}/metrics")
    (one,) = seen["instances"]
    assert (one["process"], one["cpu_percent"], one["memory_mb"], one["memory_percent"]) == (
        "web",
        50.0,
        memory,
        25.0,
    )
    assert seen["requests"] == {"total": 1200, "failed": 3, "slow": 7, "per_second": 2.5, "mean_ms": 50.0}
