"""The way of a deployment, as the gateway follows it: every message early, late and twice."""

from datetime import UTC, datetime, timedelta

import pytest
from contracts.events import (
    AppChanged,
    AppCreated,
    DeploymentRequested,
    HostnameAssigned,
    PlacementBlocked,
)
from contracts.ids import new_id

from tests.customer import Customer, Refused
from tests.gateway.world import (
    SOURCE,
    World,
    decided,
    failed,
    finished,
    rollout,
    started,
    succeeded,
)


async def app_of(customer: Customer, app: str) -> dict[str, object]:
    found: dict[str, object] = await customer.call("GET", f"/api/paas/apps/{app}")
    return found


async def deployment_of(customer: Customer, deployment: str) -> dict[str, object]:
    found: dict[str, object] = await customer.call("GET", f"/api/paas/deployments/{deployment}")
    return found


async def test_from_nothing_to_running(here: World, customer: Customer) -> None:
    app = await customer.create("garden", replicas=2)
    created = await here.harness.event(AppCreated, lambda e: e.spec.id == app)
    assert created.spec.generation == 1
    assert created.spec.image is None
    await here.say(
        HostnameAssigned(
            workload=app,
            organization=created.spec.organization,
            hostname="garden.localhost",
            url="http://garden.localhost",
        )
    )
    assert (await app_of(customer, app))["status"] == "created"
    deployment = await customer.deploy(app, SOURCE)
    assert (await app_of(customer, app))["status"] == "building"
    assert (await deployment_of(customer, deployment))["status"] == "queued"

    request = await here.requested(deployment)
    assert request.app_name == "garden"
    [python] = [preset for preset in request.runtimes if preset.type == "python"]
    assert (python.image, python.build_image) == ("berth/python:3.11", "berth/python:3.11-build")
    await here.say(started(request))
    assert (await deployment_of(customer, deployment))["status"] == "building"
    await here.say(
        finished(
            request, succeeded(processes={"web": "gunicorn app", "worker": "rq"}, port=9000, commit="abc")
        )
    )
    built = await deployment_of(customer, deployment)
    assert (built["status"], built["recipe"], built["commit"], built["size_bytes"], built["seconds"]) == (
        "deploying",
        "python-3.11",
        "abc",
        4096,
        1.5,
    )
    spec = await here.spec(app)
    assert spec.generation == 2
    assert spec.port == 9000
    assert {name: (p.command, p.replicas) for name, p in spec.processes.items()} == {
        "web": ("gunicorn app", 2),
        "worker": ("rq", 0),
    }
    assert (await app_of(customer, app))["status"] == "deploying"

    await here.roll_out(spec)
    view = await app_of(customer, app)
    assert (view["status"], view["reason"], view["url"]) == ("running", None, "http://garden.localhost")
    assert view["replicas"] == 2
    assert view["hourly"] == {"micros": 2 * 9_600, "currency": "USD"}
    ended = await deployment_of(customer, deployment)
    assert ended["status"] == "running"
    assert ended["finished_at"]


async def test_everything_backwards_and_twice(here: World, customer: Customer) -> None:
    app = await customer.create("backwards")
    deployment = await customer.deploy(app, SOURCE)
    request = await here.requested(deployment)
    end, begin = finished(request, succeeded()), started(request)
    await here.say(end)
    spec = await here.spec(app)
    up, placed = rollout(spec), decided(spec, "local")
    await here.say(up, placed, begin)
    assert (await deployment_of(customer, deployment))["status"] == "running"
    for event in (begin, end, placed, up):
        await here.harness.publish_again(event)
        await here.harness.publish_again(event.model_copy(update={"id": new_id("evt")}))
    await here.harness.settle()
    assert (await deployment_of(customer, deployment))["status"] == "running"
    assert (await app_of(customer, app))["status"] == "running"
    assert (await here.spec(app)).generation == spec.generation == 2
    assert len([e for e in await here.harness.events(AppChanged) if e.spec.id == app]) == 1


async def test_many_at_once(here: World, customer: Customer) -> None:
    """One batch, one transaction: each event must see what the one before it did."""
    app = await customer.create("batch")
    first = await here.requested(await customer.deploy(app, SOURCE))
    await here.say(started(first))
    second = await here.requested(await customer.deploy(app))
    await here.say(started(first), finished(first, succeeded()), started(second), finished(second, failed()))
    spec = await here.spec(app)
    await here.say(decided(spec, "a", "b"), rollout(spec, "a"), rollout(spec, "b"))
    view = await app_of(customer, app)
    assert view["status"] == "running"
    assert view["reason"] == "deployment 2 failed, the release before it goes on: no such package"


@pytest.mark.promise("R8.3")
async def test_a_failed_build_says_step_exit_code_and_what_to_do(here: World, customer: Customer) -> None:
    app = await customer.create("crooked")
    deployment = await customer.deploy(app, SOURCE)
    await here.say(
        finished(await here.requested(deployment), failed(message="pip failed", hint="pin the version"))
    )
    view = await deployment_of(customer, deployment)
    assert (view["status"], view["failed_step"], view["exit_code"]) == ("failed", "install", 1)
    assert view["reason"] == "pip failed (pin the version)"
    shown = await app_of(customer, app)
    assert (shown["status"], shown["reason"]) == ("failed", view["reason"])
    # The way out of it: the next deployment.
    again = await customer.deploy(app)
    await here.roll_out(await here.build(again))
    assert (await app_of(customer, app))["status"] == "running"


async def test_blocked_until_there_is_room(here: World, customer: Customer) -> None:
    app = await customer.create("crowded")
    deployment = await customer.deploy(app, SOURCE)
    spec = await here.build(deployment)
    await here.say(
        PlacementBlocked(
            workload=app,
            organization=spec.organization,
            generation=spec.generation,
            deployment=deployment,
            reasons={"n3": "memory short by 256 MB"},
        )
    )
    view = await deployment_of(customer, deployment)
    assert (view["status"], view["reason"]) == ("blocked", "no node has room: n3: memory short by 256 MB")
    assert (await app_of(customer, app))["reason"] == view["reason"]
    await here.say(decided(spec, "n4"))
    assert (await deployment_of(customer, deployment))["status"] == "deploying"
    await here.say(rollout(spec, "n4"))
    assert (await deployment_of(customer, deployment))["status"] == "running"
    assert (await app_of(customer, app))["reason"] is None


async def test_what_is_said_of_an_old_generation_is_dropped(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "quick")
    await customer.call("POST", f"/api/paas/apps/{app}/scale", json={"replicas": 2})
    await here.say(rollout(spec, ok=False, running=0, reason="too late", at=datetime.now(UTC)))
    assert (await app_of(customer, app))["status"] == "running"
    assert (await here.spec(app)).generation == spec.generation + 1


@pytest.mark.promise("P11")
async def test_a_release_that_does_not_live_gives_way_to_the_one_before(
    here: World, customer: Customer
) -> None:
    app, good = await here.live(customer, "steady")
    deployment = await customer.deploy(app)
    bad = await here.build(deployment, processes={"web": "broken"}, port=7000)
    assert bad.image != good.image
    await here.say(
        decided(bad, "local"),
        rollout(bad, ok=False, running=1, reason="health check failed", log_tail=("bo\0m",)),
    )
    view = await deployment_of(customer, deployment)
    assert (view["status"], view["reason"]) == ("failed", "local: health check failed")
    assert view["log_tail"] == ["bo\ufffdm"]
    back = await here.spec(app)
    assert (back.image, back.release, back.deployment) == (good.image, good.release, good.deployment)
    assert (back.port, back.processes, back.fingerprint()) == (good.port, good.processes, good.fingerprint())
    assert back.generation == bad.generation + 1
    shown = await app_of(customer, app)
    assert shown["status"] == "running"
    assert "deployment 2 failed" in str(shown["reason"])
    # That the old release goes on is no news about the failed deployment, nor a reason to go back again.
    await here.roll_out(back)
    assert (await deployment_of(customer, deployment))["status"] == "failed"
    await here.say(rollout(back, ok=False, running=0, reason="out of memory"))
    assert (await here.spec(app)).generation == back.generation
    shown = await app_of(customer, app)
    assert (shown["status"], shown["reason"]) == ("failed", "local: out of memory")


async def test_the_release_before_has_as_many_instances_as_before(here: World, customer: Customer) -> None:
    app = await customer.create("counted")
    good = await here.build(await customer.deploy(app, SOURCE), processes={"web": "serve", "worker": "work"})
    await here.roll_out(good)
    scale = f"/api/paas/apps/{app}/scale"
    await customer.call("POST", scale, json={"process": "worker", "replicas": 2})
    await here.roll_out(await here.spec(app))
    bad = await here.build(await customer.deploy(app), processes={"web": "broken"})
    assert {name: p.replicas for name, p in bad.processes.items()} == {"web": 1}
    await here.say(decided(bad, "local"), rollout(bad, ok=False, running=1, reason="exit 1"))
    back = await here.spec(app)
    assert {name: p.replicas for name, p in back.processes.items()} == {"web": 1, "worker": 2}
    # The same where the customer goes back himself.
    await here.roll_out(back)
    await here.roll_out(await here.build(await customer.deploy(app), processes={"web": "alone"}))
    await customer.call("POST", scale, json={"process": "web", "replicas": 2})
    await customer.call("POST", f"/api/paas/apps/{app}/rollback", json={"deployment": good.deployment})
    back = await here.spec(app)
    assert {name: p.replicas for name, p in back.processes.items()} == {"web": 2, "worker": 2}


async def test_a_first_release_that_does_not_live_leaves_no_image(here: World, customer: Customer) -> None:
    app = await customer.create("stillborn")
    deployment = await customer.deploy(app, SOURCE)
    spec = await here.build(deployment)
    await here.say(decided(spec, "local"), rollout(spec, ok=False, running=0, reason="exit 3"))
    back = await here.spec(app)
    assert (back.image, back.release, back.deployment, back.generation) == (None, None, None, 3)
    shown = await app_of(customer, app)
    assert (shown["status"], shown["reason"]) == ("failed", "local: exit 3")


async def test_one_node_of_two(here: World, customer: Customer) -> None:
    app = await customer.create("wide", replicas=2)
    deployment = await customer.deploy(app, SOURCE)
    spec = await here.build(deployment)
    await here.say(rollout(spec, "n1"), decided(spec, "n1", "n2"))
    assert (await deployment_of(customer, deployment))["status"] == "deploying"
    await here.say(rollout(spec, "n2"))
    assert (await deployment_of(customer, deployment))["status"] == "running"


async def test_a_newer_deployment_supersedes_one_that_waits(here: World, customer: Customer) -> None:
    app = await customer.create("eager")
    first = await customer.deploy(app, SOURCE)
    second = await customer.deploy(app)
    assert (await deployment_of(customer, first))["status"] == "superseded"
    # The builder had begun already: what it made is noted, and changes nothing.
    await here.say(started(await here.requested(first)), finished(await here.requested(first), succeeded()))
    assert (await deployment_of(customer, first))["status"] == "superseded"
    assert (await app_of(customer, app))["generation"] == 1
    await here.roll_out(await here.build(second))
    assert (await deployment_of(customer, second))["status"] == "running"


async def test_a_build_that_was_overtaken_is_not_rolled_out(here: World, customer: Customer) -> None:
    app = await customer.create("overtaken")
    first = await here.requested(await customer.deploy(app, SOURCE))
    await here.say(started(first))
    second = await customer.deploy(app)
    spec = await here.build(second)
    await here.say(finished(first, succeeded()))
    assert (await deployment_of(customer, first.deployment))["status"] == "superseded"
    assert (await here.spec(app)).generation == spec.generation
    await here.roll_out(spec)
    third = await customer.deploy(app)
    await here.roll_out(await here.build(third))
    assert (await deployment_of(customer, second))["reason"] == "a newer deployment runs"


async def test_the_last_word_counts(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "halted")
    deployment = await customer.deploy(app)
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    assert (await deployment_of(customer, deployment))["reason"] == "the app was stopped"
    await here.say(finished(await here.requested(deployment), succeeded()))
    assert (await app_of(customer, app))["status"] == "stopped"
    # A deployment is the wish to run.
    spec = await here.build(await customer.deploy(app))
    assert spec.state == "running"
    await here.roll_out(spec)
    assert (await app_of(customer, app))["status"] == "running"


async def test_what_to_deploy(here: World, customer: Customer) -> None:
    app = await customer.create("choosy")
    with pytest.raises(Refused, match="nothing to deploy") as refused:
        await customer.deploy(app)
    assert refused.value.status == 422
    first = (await customer.upload(app, SOURCE))["id"]
    second = (await customer.upload(app, SOURCE))["id"]

    async def deploy(**body: object) -> DeploymentRequested:
        answer = await customer.call("POST", f"/api/paas/apps/{app}/deploy", json=body)
        return await here.requested(answer["id"])

    assert (await deploy()).source.source == second  # type: ignore[union-attr]
    assert (await deploy(source=first)).source.source == first  # type: ignore[union-attr]
    url = "https://git.example.org/shop/app.git"
    chosen = (await deploy(git={"url": url, "ref": "main"})).source
    assert (chosen.kind, chosen.url, chosen.ref) == ("git", url, "main")  # type: ignore[union-attr]
    with pytest.raises(Refused, match="not both"):
        await deploy(git={"url": url}, source=first)
    with pytest.raises(Refused, match="no such source"):
        await deploy(source=new_id("src"))
    other = await customer.create("other-choice", git={"url": url})
    answer = await customer.call("POST", f"/api/paas/apps/{other}/deploy")
    assert answer["source"] == {"kind": "git", "url": url, "ref": None, "submodules": False}


async def test_history_comes_in_pages(here: World, customer: Customer) -> None:
    app = await customer.create("history")
    await customer.upload(app, SOURCE)
    for _ in range(53):
        await customer.deploy(app)
    first = await customer.call("GET", f"/api/paas/apps/{app}/deployments")
    assert [d["number"] for d in first["deployments"]] == list(range(53, 3, -1))
    rest = await customer.call("GET", f"/api/paas/apps/{app}/deployments?after={first['next']}")
    assert [d["number"] for d in rest["deployments"]] == [3, 2, 1]
    assert rest["next"] is None
    one = rest["deployments"][0]
    assert await customer.call("GET", f"/api/paas/apps/{app}/deployments/{one['id']}") == one


async def test_hostnames_come_in_any_order(here: World, customer: Customer) -> None:
    app = await customer.create("moved")
    organization = customer.organization
    assert organization is not None
    now = datetime.now(UTC)
    new, old = (
        HostnameAssigned(
            workload=app,
            organization=organization,
            hostname=host,
            url=f"https://{host}",
            at=now - timedelta(minutes=minutes),
        )
        for host, minutes in (("moved.new", 0), ("moved.old", 5))
    )
    await here.say(new, old)
    assert (await app_of(customer, app))["url"] == "https://moved.new"


async def test_events_of_what_is_not_there_harm_nobody(here: World, customer: Customer) -> None:
    app, spec = await here.live(customer, "fleeting")
    deployment = await customer.deploy(app)
    request = await here.requested(deployment)
    await customer.call("DELETE", f"/api/paas/apps/{app}")
    nowhere = request.model_copy(update={"deployment": new_id("dep")})
    await here.say(
        finished(request, succeeded()), rollout(spec), decided(spec, "x"), started(request), started(nowhere)
    )
    assert await here.host.runtime.store.read("select * from parked") == []
