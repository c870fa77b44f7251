"""Drift heals (I3): what no message will finish any more is said again, or ended with a reason."""

from typing import Any

import pytest
from contracts.events import AppChanged, CreditGranted, DeploymentRequested
from contracts.queries import DeploymentsPending, PendingDeployments, WorkloadsAfter
from gateway import sweeps
from runtime.store import PLATFORM
from sqlalchemy import text

from tests.customer import Customer, Refused
from tests.gateway.world import SOURCE, World, finished, started, succeeded


@pytest.fixture
def desk(here: World) -> Any:
    return here.host.service.http.state.desk  # type: ignore[union-attr]


async def sweep_after(here: World, desk: Any, seconds: float) -> None:
    here.harness.clock.advance(seconds)
    await sweeps.sweep(desk)
    here.harness.clock.advance(-seconds)
    await here.harness.settle()


async def times_said(here: World, deployment: str) -> list[DeploymentRequested]:
    await here.harness.settle()
    return [e for e in await here.harness.events(DeploymentRequested) if e.deployment == deployment]


async def test_a_deployment_that_nobody_takes_up_is_asked_for_again(
    here: World, customer: Customer, desk: Any
) -> None:
    app = await customer.create("unheard")
    deployment = await customer.deploy(app, SOURCE)
    await sweep_after(here, desk, 30)
    assert len(await times_said(here, deployment)) == 1
    await sweep_after(here, desk, 90)
    first, second = await times_said(here, deployment)
    assert first.model_copy(update={"id": second.id, "at": second.at, "trace": None}) == second
    assert first.id != second.id
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], view["reason"]) == (
        "queued",
        "no builder has taken it up yet; it is asked for again",
    )
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["reason"] == view["reason"]
    await here.say(started(first))
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], view["reason"]) == ("building", None)
    await sweep_after(here, desk, 90)
    assert len(await times_said(here, deployment)) == 2


async def test_a_silent_build_ends_with_a_reason(here: World, customer: Customer, desk: Any) -> None:
    app = await customer.create("silent-build")
    deployment = await customer.deploy(app, SOURCE)
    await here.say(started(await here.requested(deployment)))
    await sweep_after(here, desk, 59 * 60)
    assert (await customer.call("GET", f"/api/paas/deployments/{deployment}"))["status"] == "building"
    await sweep_after(here, desk, 61 * 60)
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], view["reason"]) == (
        "failed",
        "the build said nothing for 60 minutes; deploy again",
    )
    assert view["finished_at"]
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "failed"


async def test_a_silent_rollout_is_told_again(here: World, customer: Customer, desk: Any) -> None:
    app = await customer.create("silent-node")
    deployment = await customer.deploy(app, SOURCE)
    spec = await here.build(deployment)
    await sweep_after(here, desk, 6 * 60)
    said = [e.spec for e in await here.harness.events(AppChanged) if e.spec.id == app]
    # The second time it belongs to no request.
    assert [s.model_copy(update={"trace": None}) for s in said] == [
        spec.model_copy(update={"trace": None})
    ] * 2
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], view["reason"]) == (
        "deploying",
        "no node has said yet how it went; they are told again",
    )
    await here.roll_out(spec)
    view = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    assert (view["status"], view["reason"]) == ("running", None)


async def test_a_row_that_cannot_be_read_ends_no_sweep(here: World, customer: Customer, desk: Any) -> None:
    apps = [await customer.create(f"bad-row-{number}") for number in (1, 2)]
    specs = [await here.build(await customer.deploy(app, SOURCE)) for app in apps]
    limits = specs[0].limits.model_dump_json()
    broken = text("update workload set limits = cast(:limits as jsonb) where id = :app")
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(broken, {"limits": "{}", "app": apps[0]})
    try:
        await sweep_after(here, desk, 6 * 60)
    finally:
        async with here.host.runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(broken, {"limits": limits, "app": apps[0]})
    said = [e.spec.id for e in await here.harness.events(AppChanged)]
    assert [said.count(app) for app in apps] == [1, 2]


async def test_what_runs_without_money_is_found(here: World, desk: Any) -> None:
    customer = await here.customer()
    app, _ = await here.live(customer, "free-rider")
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        # As after a wallet's word and a start that crossed.
        await tx.execute(
            text("update credit set booked = true where organization = :organization"),
            {"organization": customer.organization},
        )
        await tx.execute(
            text("insert into wallet values (:organization, 1, -1, 'USD')"),
            {"organization": customer.organization},
        )
    await sweep_after(here, desk, 0)
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "suspended"


async def test_a_credit_that_billing_never_named_is_granted_again(here: World, desk: Any) -> None:
    """Its word, or ours, may be lost; counted beside the balance, a credit would be spent twice."""
    customer = await here.customer(credit="5.00")
    app = await customer.create("paid-once")
    await customer.deploy(app, SOURCE)
    await here.balance(customer.organization, 5_000_000, sequence=1, booked=False)

    async def granted_after(hours: float) -> list[CreditGranted]:
        here.harness.clock.advance(hours * 3600)
        await sweeps.tidy(desk)
        here.harness.clock.advance(-hours * 3600)
        await here.harness.settle()
        events = await here.harness.events(CreditGranted)
        return [event for event in events if event.organization == customer.organization]

    assert len(await granted_after(0.9)) == 1
    for _ in range(2):
        first, again = await granted_after(2)
        assert again.model_copy(update={"id": first.id, "at": first.at}) == first
    # Billing answers with the balance that has it.
    await here.balance(customer.organization, 5_000_000, sequence=1)
    assert len(await granted_after(50)) == 2
    await here.balance(customer.organization, 0, sequence=2, booked=False)
    with pytest.raises(Refused, match="add credit"):
        await customer.deploy(app)


async def test_the_builder_can_ask_what_waits(here: World) -> None:
    customer = await here.customer()
    waiting = []
    for number in range(3):
        app = await customer.create(f"waiting-{number}")
        waiting.append(await customer.deploy(app, SOURCE))
    await here.say(started(await here.requested(waiting[1])))
    bus = await here.harness.everybody()
    answer: PendingDeployments = await bus.ask(DeploymentsPending())
    mine = [r for r in answer.requests if r.organization == customer.organization]
    assert [r.deployment for r in mine] == [waiting[0], waiting[2]]
    first = await here.requested(waiting[0])
    assert mine[0] == first.model_copy(update={"id": mine[0].id, "at": mine[0].at, "trace": None})


async def test_however_much_the_apps_say_every_answer_is_whole_and_fits_into_its_messages(
    here: World,
) -> None:
    customer = await here.customer()
    build = {"arguments": {f"A{number}": "x" * 2000 for number in range(50)}}
    apps = [await customer.create(f"wordy-{number}", build=build) for number in range(13)]
    for app in apps[11:]:
        content = f"LARGE='{chr(1) * 32_000}'"
        await customer.call("POST", f"/api/paas/apps/{app}/variables/import", content=content)
    waiting = [await customer.deploy(app, SOURCE) for app in apps]
    bus = await here.harness.everybody()
    taken: list[str] = []
    while len(taken) < len(waiting):
        answer: PendingDeployments = await bus.ask(DeploymentsPending())
        mine = [request for request in answer.requests if request.organization == customer.organization]
        assert mine
        for request in mine:
            taken.append(request.deployment)
            await here.say(started(request))
            await here.say(finished(request, succeeded(processes={"web": "x" * 100_000})))
    assert taken == waiting

    found, question = [], WorkloadsAfter()
    while True:
        page = await bus.ask(question)
        found += [spec.id for spec in page.specs]
        if page.next is None:
            break
        question = WorkloadsAfter(after=page.next)
    assert len(found) == len(set(found))
    assert set(apps) <= set(found)


async def test_what_is_old_is_tidied_away(here: World, desk: Any) -> None:
    visitor = await here.visitor()
    body = {"email": "nobody@example.org", "password": "wrong"}
    assert (await visitor.client.post("/api/auth/login", json=body)).status_code == 401
    counted = "select count(*) from attempt"
    await sweeps.tidy(desk)
    assert await desk.store.read(counted) == [(1,)]
    here.harness.clock.advance(16 * 60)
    await sweeps.tidy(desk)
    assert await desk.store.read(counted) == [(0,)]
