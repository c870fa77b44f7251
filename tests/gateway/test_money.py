"""Money, as far as the gateway goes: what may start, what stops, who pays in, what was used."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from contracts.api import UsageView, WalletView
from contracts.events import CreditGranted, JobCancelled
from contracts.ids import new_id
from contracts.money import Money
from contracts.queries import Charge, Statement

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World, finished, succeeded


def usd(micros: int) -> Money:
    return Money(micros=micros, currency="USD")


async def test_without_money_nothing_starts(here: World) -> None:
    customer = await here.customer(credit=None)
    app = await customer.create("penniless")
    await customer.upload(app, SOURCE)
    with pytest.raises(Refused, match="add credit") as refused:
        await customer.deploy(app)
    assert refused.value.status == 402
    assert refused.value.error["code"] == "payment_required"
    await here.balance(customer.organization, 0, sequence=1)
    with pytest.raises(Refused, match="add credit"):
        await customer.deploy(app)
    await here.balance(customer.organization, 1, sequence=2)
    await customer.deploy(app)


async def test_credit_counts_at_once_and_only_once(here: World) -> None:
    """Not only when billing has booked it: who has just paid need not wait, nor pay twice."""
    customer = await here.customer(credit="5.00")
    app = await customer.create("impatient")
    await customer.deploy(app, SOURCE)
    # Billing books it; from then on its word counts alone.
    await here.balance(customer.organization, 5_000_000, sequence=1)
    await customer.deploy(app)
    await here.balance(customer.organization, 0, sequence=2)
    with pytest.raises(Refused, match="add credit"):
        await customer.deploy(app)


@pytest.mark.promise("R15.5")
async def test_an_empty_wallet_suspends_and_credit_brings_back(here: World) -> None:
    customer = await here.customer()
    app, spec = await here.live(customer, "on-credit")
    built, _ = await here.live(customer, "halfway")
    deployment = await customer.deploy(built)
    idle = await customer.create("idle-one")
    stopped, _ = await here.live(customer, "stopped-one")
    await customer.call("POST", f"/api/paas/apps/{stopped}/stop")
    stranger = await here.customer()
    other, _ = await here.live(stranger, "bystander")

    await here.balance(customer.organization, 10, sequence=1)
    assert (await view(customer, app))["status"] == "running"
    await here.balance(customer.organization, -5, sequence=3)
    shown = await view(customer, app)
    assert shown["status"] == "suspended"
    assert shown["reason"] == "the wallet is empty; add credit, then start the app"
    halted = await here.spec(app)
    assert (halted.state, halted.generation) == ("stopped", spec.generation + 1)
    waiting = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (waiting["status"], "add credit" in waiting["reason"]) == ("failed", True)
    assert (await view(customer, built))["status"] == "suspended"
    assert (await view(customer, idle))["status"] == "created"
    assert (await view(customer, stopped))["status"] == "stopped"
    assert (await view(stranger, other))["status"] == "running"
    # A build that ends now brings nothing back.
    await here.say(finished(await here.requested(deployment), succeeded()))
    assert (await view(customer, built))["status"] == "suspended"
    for what in ("start", "restart", "deploy"):
        with pytest.raises(Refused) as refused:
            await customer.call("POST", f"/api/paas/apps/{app}/{what}")
        assert refused.value.status == 402

    # An older word changes nothing; a newer one does not start anything by itself.
    await here.balance(customer.organization, 99, sequence=2)
    assert (await view(customer, app))["reason"] == "the wallet is empty; add credit, then start the app"
    await here.balance(customer.organization, 5_000_000, sequence=4)
    assert (await view(customer, app))["reason"] == "there is credit again; start the app"
    await customer.call("POST", f"/api/paas/apps/{app}/start")
    await here.roll_out(await here.spec(app))
    assert (await view(customer, app))["status"] == "running"
    # Or by a new deployment.
    await here.roll_out(await here.build(await customer.deploy(built)))
    assert (await view(customer, built))["status"] == "running"


async def view(customer: Customer, app: str) -> Any:
    return await customer.call("GET", f"/api/paas/apps/{app}")


async def test_a_suspended_app_may_be_stopped_and_scaled_down(here: World) -> None:
    customer = await here.customer()
    app, _ = await here.live(customer, "frugal", replicas=3)
    await here.balance(customer.organization, 0, sequence=1)
    with pytest.raises(Refused) as refused:
        await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"replicas": 4})
    assert refused.value.status == 402
    shown = await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"replicas": 1})
    assert (shown["status"], shown["replicas"]) == ("suspended", 1)
    assert (await customer.call("POST", f"/api/paas/apps/{app}/stop"))["status"] == "stopped"


async def test_commands_of_a_stopped_app_end_with_the_money(here: World) -> None:
    customer = await here.customer()
    app, _ = await here.live(customer, "at-rest")
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    job = await customer.call(
        "POST", f"/api/paas/apps/{app}/run", json={"command": "mine", "timeout_seconds": 86_400}
    )
    await here.balance(customer.organization, 5, sequence=1)
    assert not [e for e in await here.harness.events(JobCancelled) if e.job == job["id"]]
    await here.balance(customer.organization, -5, sequence=2)
    assert [e for e in await here.harness.events(JobCancelled) if e.job == job["id"]]


async def test_a_charge_that_crosses_a_credit_suspends_nobody(here: World) -> None:
    """Billing has booked it before the credit that is on its way there, whatever their clocks say."""
    customer = await here.customer()
    app, _ = await here.live(customer, "crossing")
    assert customer.organization is not None
    await here.balance(customer.organization, -5, sequence=1, booked=False)
    assert (await view(customer, app))["status"] == "running"
    # The word of the credit comes late, after one of a later charge: it is counted no more.
    await here.balance(customer.organization, -7, sequence=3, booked=False)
    assert (await view(customer, app))["status"] == "running"
    await here.balance(customer.organization, 24_999_995, sequence=2)
    assert (await view(customer, app))["status"] == "suspended"


async def test_a_credit_is_said_once_and_the_same_key_grants_once(here: World) -> None:
    customer = await here.customer(credit=None)
    admin = await here.administrator()
    path = f"/api/admin/organizations/{customer.organization}/credits"
    key = {"Idempotency-Key": "invoice-17"}
    body = {"amount": "12.345678", "note": "invoice 17"}
    first = await admin.call("POST", path, json=body, headers=key)
    assert first["amount"] == {"micros": 12_345_678, "currency": "USD"}
    assert await admin.call("POST", path, json=body, headers=key) == first
    with pytest.raises(Refused, match="another credit") as refused:
        await admin.call("POST", path, json={**body, "amount": "1.00"}, headers=key)
    assert refused.value.status == 409
    await admin.call("POST", path, json=body)
    await here.harness.settle()
    said = [e for e in await here.harness.events(CreditGranted) if e.organization == customer.organization]
    assert [(e.amount, e.note) for e in said] == [(usd(12_345_678), "invoice 17")] * 2
    assert said[0].credit == first["id"]
    me = await admin.call("GET", "/api/auth/me")
    assert said[0].by == me["id"]
    # The key is one organization's.
    other = await here.customer(credit=None)
    again = f"/api/admin/organizations/{other.organization}/credits"
    assert (await admin.call("POST", again, json=body, headers=key))["id"] != first["id"]


async def test_wallet_and_usage_come_from_billing(here: World) -> None:
    customer = await here.customer()
    app = await customer.create("metered-one")
    deleted = await customer.create("metered-two")
    await customer.call("DELETE", f"/api/paas/apps/{deleted}")
    assert customer.organization is not None
    here.parts.wallets[customer.organization] = 1_234_567
    wallet = WalletView.model_validate(await customer.call("GET", "/api/paas/wallet"))
    assert (wallet.balance, wallet.accrued) == (usd(1_234_567), usd(7))
    begin = datetime(2026, 1, 1, tzinfo=UTC)

    nothing = UsageView.model_validate(await customer.call("GET", "/api/paas/usage"))
    assert (nothing.total, nothing.since, nothing.lines) == (usd(0), None, ())

    def charge(workload: str, hour: int, micros: int) -> Charge:
        start = begin + timedelta(hours=hour)
        return Charge(
            workload=workload,
            period_start=start,
            period_end=start + timedelta(hours=1),
            seconds=3600,
            amount=usd(micros),
        )

    unknown = new_id("app")
    here.parts.statements[customer.organization] = Statement(
        charges=(charge(app, 2, 50), charge(deleted, 1, 300), charge(app, 0, 40), charge(unknown, 2, 1)),
        entries=(),
    )
    usage = UsageView.model_validate(await customer.call("GET", "/api/paas/usage"))
    assert (usage.total, usage.since) == (usd(391), begin)
    assert [(line.name, line.seconds, line.amount.micros) for line in usage.lines] == [
        ("metered-two", 3600, 300),
        ("metered-one", 7200, 90),
        (None, 3600, 1),
    ]


async def test_the_administrator_sees_every_organization(here: World) -> None:
    customer = await here.customer()
    await customer.create("seen-one")
    await here.balance(customer.organization, 42, sequence=7)
    admin = await here.administrator()
    found = await admin.call("GET", "/api/admin/organizations")
    mine = next(o for o in found["organizations"] if o["id"] == customer.organization)
    assert (mine["apps"], mine["balance"]) == (1, usd(42).model_dump())
