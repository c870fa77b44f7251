"""Plans, runtimes, places: what is offered, and what a change of it means for apps there are."""

import pytest
from contracts.api import RegionList, RuntimeList
from contracts.queries import Nodes
from contracts.scaling_api import OfferedPlan, PlanList

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World

NEW = {
    "name": "huge",
    "title": "Huge",
    "limits": {"cpu_millis": 4000, "memory_mb": 8192, "disk_mb": 100_000, "pids": 1024},
    "max_replicas": 20,
    "hourly": "0.123456",
    "monthly": "80",
}
EVERY = ("buildpack-22", "go-1.23", "java-17", "node-24", "php-8.2", "python-3.11", "ruby-3.1", "static")


@pytest.mark.promise("R5.3", "R5.4")
async def test_what_a_customer_can_choose_from(here: World, customer: Customer) -> None:
    plans = PlanList.model_validate(await customer.call("GET", "/api/paas/plans")).plans
    assert [plan.name for plan in plans][:3] == ["nano", "small", "medium"]
    assert all(plan.runtimes == EVERY for plan in plans[:3])
    assert plans[1].hourly.model_dump() == {"micros": 9_600, "currency": "USD"}
    runtimes = RuntimeList.model_validate(await customer.call("GET", "/api/paas/runtimes")).runtimes
    assert tuple(runtime.name for runtime in runtimes) == EVERY
    assert {(r.type, r.version) for r in runtimes} >= {("python", "3.11"), ("node", "24"), ("static", "1")}
    # Only where there is room.
    regions = RegionList.model_validate(await customer.call("GET", "/api/paas/locations")).regions
    assert [(r.name, r.base_domain) for r in regions] == [("local", "localhost")]


@pytest.mark.promise("R1.2", "R1.3", "R1.4")
async def test_a_plan_is_made_and_sold(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    made = OfferedPlan.model_validate(await admin.call("POST", "/api/admin/paas/plans", json=NEW))
    assert (made.hourly.micros, made.monthly.micros, made.active) == (123_456, 80_000_000, True)
    with pytest.raises(Refused, match="already") as refused:
        await admin.call("POST", "/api/admin/paas/plans", json=NEW)
    assert refused.value.status == 409
    app = await customer.create("on-huge", plan="huge", replicas=20)
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert view["limits"] == {**NEW["limits"], "cpu_request_millis": None, "memory_request_mb": None}  # type: ignore[dict-item]
    for field in ("name", "title", "limits", "max_replicas", "hourly", "monthly"):
        body = {key: value for key, value in NEW.items() if key != field} | {"name": "less"}
        if field == "name":
            del body["name"]
        with pytest.raises(Refused) as refused:
            await admin.call("POST", "/api/admin/paas/plans", json=body)
        assert refused.value.status == 422
        assert field in refused.value.error["details"]["fields"]


async def test_what_a_plan_asks_of_nodes_goes_with_the_app(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    needs = {"labels": {"disk": "ssd"}, "runtime": "runsc", "architecture": None, "spread": True}
    body = {**NEW, "name": "walled", "needs": needs}
    await admin.call("POST", "/api/admin/paas/plans", json=body)
    with pytest.raises(Refused):
        await admin.call("POST", "/api/admin/paas/plans", json={**body, "needs": {"colour": "red"}})
    _, spec = await here.live(customer, "on-walled", plan="walled")
    assert spec.needs.model_dump() == {**needs, "apart": False}
    await admin.call("PATCH", "/api/admin/paas/plans/walled", json={"needs": {"apart": True}})
    shown = {p["name"]: p for p in (await customer.call("GET", "/api/paas/plans"))["plans"]}
    assert shown["walled"]["needs"]["apart"] is True
    # For apps to come.
    assert (await here.spec(spec.id)).needs == spec.needs


@pytest.mark.promise("R1.5")
async def test_a_new_price_is_for_apps_to_come(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    path = "/api/admin/paas/plans/medium"
    old, spec = await here.live(customer, "old-price", plan="medium")
    changed = await admin.call(
        "PATCH",
        path,
        json={"hourly": "0.05", "limits": {**NEW["limits"], "memory_mb": 2048}},  # type: ignore[dict-item]
    )
    assert changed["hourly"]["micros"] == 50_000
    assert changed["title"] == "Medium"
    new = await customer.create("new-price", plan="medium")
    assert (await customer.call("GET", f"/api/paas/apps/{new}"))["hourly"]["micros"] == 50_000
    await customer.call("POST", f"/api/paas/apps/{old}/restart")
    again = await here.spec(old)
    assert (again.rate, again.limits) == (spec.rate, spec.limits)
    assert again.rate.micros_per_hour == 20_500


async def test_a_plan_is_withdrawn(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    app = await customer.create("kept-plan", plan="nano")
    await admin.call("PATCH", "/api/admin/paas/plans/nano", json={"active": False})
    assert "nano" not in str(await customer.call("GET", "/api/paas/plans"))
    assert "nano" in str(await admin.call("GET", "/api/admin/paas/plans"))
    with pytest.raises(Refused, match="choose one of"):
        await customer.create("too-late", plan="nano")
    # Who has it keeps it.
    await customer.deploy(app, SOURCE)
    await admin.call("PATCH", "/api/admin/paas/plans/nano", json={"active": True})


@pytest.mark.parametrize(
    "change",
    [
        {"title": None},
        {"hourly": "-1"},
        {"hourly": 1},
        {"max_replicas": 0},
        {"limits": {"cpu_millis": 0, "memory_mb": 16, "disk_mb": 1}},
        {"limits": {"cpu_millis": 1, "memory_mb": 16, "disk_mb": 1, "gpu": 1}},
        {"limits": {"cpu_millis": 1, "memory_mb": 16, "disk_mb": 1, "memory_request_mb": 1}},
        {"runtimes": ["cobol"]},
        {"name": "other"},
        {"currency": "EUR"},
    ],
    ids=str,
)
async def test_a_change_that_cannot_be(here: World, change: dict[str, object]) -> None:
    admin = await here.administrator()
    before = await admin.call("GET", "/api/admin/paas/plans")
    with pytest.raises(Refused) as refused:
        await admin.call("PATCH", "/api/admin/paas/plans/small", json=change)
    assert refused.value.status == 422
    assert await admin.call("GET", "/api/admin/paas/plans") == before
    with pytest.raises(Refused) as refused:
        await admin.call("PATCH", "/api/admin/paas/plans/nothing", json={"title": "x"})
    assert refused.value.status == 404


async def test_a_plan_names_its_runtimes(here: World, customer: Customer) -> None:
    admin = await here.administrator()
    body = {**NEW, "name": "bare", "runtimes": []}
    assert (await admin.call("POST", "/api/admin/paas/plans", json=body))["runtimes"] == []
    with pytest.raises(Refused, match="has no runtime python"):
        await customer.create("no-runtime", plan="bare", build={"runtime": "python-3.11"})
    app = await customer.create("own-dockerfile", plan="bare")
    assert (await here.requested(await customer.deploy(app, SOURCE))).runtimes == ()
    await admin.call("PATCH", "/api/admin/paas/plans/bare", json={"runtimes": None})
    offered = (await here.requested(await customer.deploy(app))).runtimes
    assert tuple(preset.name for preset in offered) == EVERY


@pytest.mark.promise("R3.5", "R4.3")
async def test_the_administrator_sees_the_nodes(here: World) -> None:
    admin = await here.administrator()
    [node] = Nodes.model_validate(await admin.call("GET", "/api/admin/paas/nodes")).nodes
    assert (node.name, node.status, node.capacity.memory_mb, node.used.memory_mb) == (
        "local",
        "online",
        4096,
        512,
    )
