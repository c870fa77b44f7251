"""What the administrator is told of apps: one that is down for long, one that ends again and again."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.events import AlertRaised, InstanceCrashed, InstanceStopped
from contracts.ids import new_id
from contracts.workload import Slot, WorkloadSpec
from runtime.store import PLATFORM
from sqlalchemy import text

from tests.customer import Customer
from tests.gateway.world import SOURCE, World, decided, failed, finished, rollout
from tests.harness import eventually


async def alerts(here: World, spec: WorkloadSpec) -> list[dict[str, Any]]:
    administrator = await here.administrator()
    found = (await administrator.call("GET", "/api/admin/alerts"))["alerts"]
    return [one for one in found if one["details"].get("app") == spec.id]


async def over(here: World, spec: WorkloadSpec) -> None:
    """Whatever was told of it does not stand any more."""

    async def look() -> bool:
        return all(one["over_at"] is not None for one in await alerts(here, spec))

    await eventually(look, what="the end of it")


async def told(here: World, spec: WorkloadSpec, wanted: str) -> None:
    async def just_this() -> bool:
        return [one["title"] for one in await alerts(here, spec)] == [wanted]

    await eventually(just_this, what=f"{wanted} and nothing else")


async def look(here: World) -> None:
    [outages] = [one for one in here.host.service.loops if one.name == "outages"]
    await outages.work()


@contextmanager
def later(here: World, seconds: float) -> Iterator[None]:
    here.harness.clock.advance(seconds)
    try:
        yield
    finally:
        here.harness.clock.advance(-seconds)


def crash(spec: WorkloadSpec, crashes: int) -> InstanceCrashed:
    return InstanceCrashed(node="local", crashes=crashes, seconds_away=1.0, **ended(spec))


def ended(spec: WorkloadSpec) -> dict[str, Any]:
    return {
        "instance": new_id("ins"),
        "workload": spec.id,
        "organization": spec.organization,
        "slot": Slot(process="web", index=0),
        "exit_code": 1,
        "words": "exit code 1",
    }


async def test_an_app_that_is_down_for_long_is_told_of_once(here: World, customer: Customer) -> None:
    _, spec = await here.live(customer, "fallen")
    await here.say(decided(spec, "local", later=1), rollout(spec, ok=False, running=0, reason="exit 1"))
    await look(here)
    assert await alerts(here, spec) == []
    with later(here, 301):
        await look(here)
        await look(here)
    await told(here, spec, "App fallen has been down for 5 minutes")
    [alert] = await alerts(here, spec)
    assert alert["severity"] == "critical"
    assert "exit 1" in alert["details"]["why"]
    assert alert["over_at"] is None
    await here.say(rollout(spec, running=1))
    await over(here, spec)
    [end, begin] = await alerts(here, spec)
    assert end["title"] == "App fallen is not down any more"
    assert begin["over_at"] == end["over_at"] == end["at"] > begin["at"]


async def test_one_that_is_deleted_is_not_down_any_more(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "given-up")
    await here.say(rollout(spec, ok=False, running=0, reason="exit 1"))
    with later(here, 301):
        await look(here)
    await told(here, spec, "App given-up has been down for 5 minutes")
    await customer.call("DELETE", f"/api/paas/apps/{app}")
    await over(here, spec)


async def test_an_app_that_lives_and_does_not_answer_is_down(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "mute")
    deployment = await customer.deploy(app, SOURCE)
    await here.say(finished(await here.requested(deployment), failed()))

    async def reason() -> str:
        return (await customer.call("GET", f"/api/paas/apps/{app}"))["reason"]  # type: ignore[no-any-return]

    assert "goes on" in await reason()
    [silence] = [one for one in here.host.service.loops if one.name == "silence"]
    here.parts.silent.append(spec.id)
    await silence.work()
    assert "goes on" in await reason()
    with later(here, 301):
        await look(here)
    await told(here, spec, "App mute has been down for 5 minutes")
    assert (await alerts(here, spec))[0]["details"]["why"] == "no instance answers"
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        earlier = text("update workload set down_since = down_since - interval '2 minutes' where id = :app")
        await tx.execute(earlier, {"app": app})
    assert await reason() == "none of its instances answers; GET …/activity says what happened"
    here.parts.silent.clear()
    await silence.work()
    await over(here, spec)
    assert "goes on" in await reason()


async def test_a_row_that_cannot_be_read_hides_no_other_that_is_down(here: World, customer: Customer) -> None:
    broken, _ = await here.live(customer, "unreadable")
    _, spec = await here.live(customer, "mute-too")
    change = text("update workload set placement = cast(:said as jsonb) where id = :app")
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(change, {"said": '{"nodes": 1}', "app": broken})
    [silence] = [one for one in here.host.service.loops if one.name == "silence"]
    here.parts.silent += [broken, spec.id]
    try:
        await silence.work()
        with later(here, 301):
            await look(here)
        await told(here, spec, "App mute-too has been down for 5 minutes")
    finally:
        here.parts.silent.clear()
        async with here.host.runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(change, {"said": "null", "app": broken})
    await silence.work()
    await over(here, spec)


async def test_the_end_may_be_heard_before_the_alert(here: World, customer: Customer) -> None:
    _, spec = await here.live(customer, "confused")
    begin = datetime.now(UTC)
    about = {"service": "x", "severity": "warning", "details": {"app": spec.id}, "about": f"test/{spec.id}"}

    def alert(title: str, seconds: float, *, over: bool = False) -> AlertRaised:
        at = begin + timedelta(seconds=seconds)
        return AlertRaised.model_validate({**about, "title": title, "at": at, "over": over})

    await here.say(alert("end", 2, over=True), alert("begin", 1), alert("again", 3))
    ends = {one["title"]: one["over_at"] for one in await alerts(here, spec)}
    assert ends["begin"] == ends["end"] is not None
    assert ends["again"] is None
    await here.say(alert("at last", 4, over=True))
    await over(here, spec)


async def test_one_that_comes_back_in_time_is_not(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "stumbled")
    await here.say(rollout(spec, ok=False, running=0, reason="exit 1"))
    await here.say(rollout(spec, running=1))
    halted, gone = await here.live(customer, "halted-for-good")
    await customer.call("POST", f"/api/paas/apps/{halted}/stop")
    with later(here, 301):
        await look(here)
    assert await alerts(here, spec) == await alerts(here, gone) == []
    assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "running"


async def test_one_that_ends_again_and_again_is_told_of_once_an_hour(here: World, customer: Customer) -> None:
    _, spec = await here.live(customer, "restless")
    await here.say(crash(spec, 1), crash(spec, 2))
    assert await alerts(here, spec) == []
    # The node has counted more than it told of.
    await here.say(crash(spec, 5))
    await told(here, spec, "App restless is restarted again and again")
    await here.say(crash(spec, 9))
    await told(here, spec, "App restless is restarted again and again")
    with later(here, 3500):
        await look(here)
    await told(here, spec, "App restless is restarted again and again")
    with later(here, 3700):
        await look(here)
        await look(here)
    await over(here, spec)
    titles = [one["title"] for one in await alerts(here, spec)]
    assert titles == [
        "App restless is not restarted any more",
        "App restless is restarted again and again",
    ]


async def test_restarts_of_what_is_unhealthy_count_too(here: World, customer: Customer) -> None:
    _, spec = await here.live(customer, "sickly")
    for number in range(5):
        assert await alerts(here, spec) == [], f"after {number}"
        at = datetime.now(UTC)
        meter = {"deployment": spec.deployment, "rate": spec.rate, "started_at": at, "stopped_at": at}
        told_of = {"node": "local", "generation": spec.generation, "reason": "unhealthy"}
        await here.say(InstanceStopped(at=at, **meter, **told_of, **ended(spec)))
    await told(here, spec, "App sickly is restarted again and again")


async def test_one_that_does_not_start_at_its_new_place_says_why_and_comes_back_by_itself(
    here: World, customer: Customer
) -> None:
    app, spec = await here.live(customer, "moved-away")
    why = "web.1 could not be started: image berth/app could not be pulled: not found"
    await here.say(decided(spec, "n2", later=1))
    await here.say(rollout(spec, "n2", ok=False, running=0, reason=why, at=now(2)))
    # The instance it had goes on until the new one has come to life.
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["reason"]) == ("running", f"n2: {why}")
    await here.say(rollout(spec, "local", running=0, at=now(3)))
    await here.say(rollout(spec, "n2", ok=False, running=0, reason=why, at=now(4)))
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["reason"]) == ("failed", f"n2: {why}")
    with later(here, 310):
        await look(here)
    await told(here, spec, "App moved-away has been down for 5 minutes")
    await here.say(rollout(spec, "n2", at=now(5)))
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["reason"]) == ("running", None)
    noted = (await customer.call("GET", f"/api/paas/apps/{app}/activity"))["activity"]
    assert [(one["kind"], one["words"]) for one in reversed(noted)] == [
        ("failed", f"it does not come to life on n2: {why}"),
        ("recovered", "it has come to life on n2"),
    ]


async def test_what_a_lost_node_said_counts_for_nothing(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "bereft")
    await here.say(decided(spec, "n2", later=1).model_copy(update={"lost": ("local",)}))
    await here.say(rollout(spec, "n2", ok=False, running=0, reason="exit 1", at=now(2)))
    await here.say(decided(spec, "n2", later=3))
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    assert (view["status"], view["reason"]) == ("failed", "n2: exit 1")


def now(later: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=later)
