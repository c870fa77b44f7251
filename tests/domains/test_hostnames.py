"""Every workload gets one hostname and its route, whatever comes twice, late, or not at all."""

import shutil
from collections.abc import Sequence

import pytest
from contracts.errors import Unavailable
from contracts.events import AppChanged, AppCreated, AppDeleted, HostnameAssigned
from contracts.ids import new_id
from contracts.queries import Workloads, WorkloadsAfter
from contracts.workload import Route, WorkloadSpec
from domains.projection import SURVEY_SECONDS, route_in
from nats.errors import Error as NatsError
from runtime.bucket import Bucket
from runtime.host import Host
from runtime.streams import declare

from tests.domains.samples import later, spec
from tests.harness import Harness, Servers, eventually


@pytest.fixture
async def snapshot(harness: Harness) -> list[WorkloadSpec]:
    """What the gateway answers, in pages of two."""
    specs: list[WorkloadSpec] = []

    async def answer(query: WorkloadsAfter) -> Workloads:
        rest = sorted((s for s in specs if s.id > (query.after or "")), key=lambda s: s.id)
        return Workloads(specs=tuple(rest[:2]), next=rest[1].id if len(rest) > 2 else None)

    await harness.answers(WorkloadsAfter, answer)
    return specs


@pytest.fixture
async def routes(harness: Harness) -> Bucket:
    return (await harness.everybody()).bucket("routes")


def nudge(host: Host, name: str) -> None:
    next(loop for loop in host.service.loops if loop.name == name).nudge()


def survey_now(harness: Harness, host: Host) -> None:
    harness.clock.advance(SURVEY_SECONDS)
    nudge(host, "survey")


async def found_in(bucket: Bucket) -> dict[str, str]:
    """hostname -> workload; what is no route is shown as it is."""
    routes = {key: (route_in(entry.value), entry) for key, entry in (await bucket.entries()).items()}
    return {key: route.workload if route else repr(entry) for key, (route, entry) in routes.items()}


async def become(bucket: Bucket, expected: dict[str, str]) -> None:
    async def same() -> bool:
        return await found_in(bucket) == expected

    try:
        await eventually(same, what="the routes")
    except AssertionError:
        assert await found_in(bucket) == expected
        raise


async def assigned(harness: Harness) -> list[tuple[str, str]]:
    return [(e.hostname, e.url) for e in await harness.events(HostnameAssigned)]


async def test_an_app_has_a_hostname_until_it_is_deleted(
    harness: Harness, routes: Bucket, snapshot: Sequence[WorkloadSpec]
) -> None:
    await harness.start("domains")
    shop = spec()
    created = AppCreated(spec=shop)
    await harness.publish(created)
    await harness.publish_again(created)
    await become(routes, {"shop.localhost": shop.id})
    event = await harness.event(HostnameAssigned)
    assert (event.workload, event.organization) == (shop.id, shop.organization)
    assert await assigned(harness) == [("shop.localhost", "http://shop.localhost")]
    changed = later(shop, image="sha256:1")
    await harness.publish(AppChanged(spec=changed))
    gone = later(changed, state="deleted")
    await harness.publish(AppDeleted(spec=gone))
    await become(routes, {})
    # Late messages of a deleted app bring nothing back.
    await harness.publish_again(created)
    await harness.publish(AppChanged(spec=changed), AppCreated(spec=shop))
    await harness.settle()
    await become(routes, {})
    assert len(await assigned(harness)) == 1


async def test_a_change_heals_a_creation_that_never_came(
    harness: Harness, routes: Bucket, snapshot: Sequence[WorkloadSpec]
) -> None:
    await harness.start("domains")
    shop = spec(generation=3, environment="staging")
    await harness.publish(AppChanged(spec=shop), AppCreated(spec=shop.model_copy(update={"generation": 1})))
    await become(routes, {"shop-staging.localhost": shop.id})


async def test_the_snapshot_tells_what_no_message_told(
    harness: Harness, routes: Bucket, snapshot: list[WorkloadSpec]
) -> None:
    apps = [spec(f"app{n}") for n in range(5)]
    snapshot += apps
    host = await harness.start("domains")
    await become(routes, {f"{app.name}.localhost": app.id for app in apps})
    snapshot[0] = later(apps[0], state="deleted")
    nudge(host, "heal")
    await become(routes, {f"{app.name}.localhost": app.id for app in apps[1:]})
    assert len(await assigned(harness)) == 5


async def test_namesakes_each_get_a_hostname(
    harness: Harness, routes: Bucket, snapshot: Sequence[WorkloadSpec]
) -> None:
    await harness.start("domains")
    await harness.start("domains", alias="second")
    apps = [spec() for _ in range(6)]
    await harness.publish(*(AppCreated(spec=app) for app in apps))

    async def all_there() -> bool:
        return sorted((await found_in(routes)).values()) == sorted(app.id for app in apps)

    await eventually(all_there, what="a route for each namesake")
    hostnames = await found_in(routes)
    first = hostnames.pop("shop.localhost")
    assert all(hostname == f"shop-{id[-4:]}.localhost" for hostname, id in hostnames.items())
    assert {hostname for hostname, _ in await assigned(harness)} == {"shop.localhost", *hostnames}
    # Those who remain stay where they are.
    await harness.publish(AppDeleted(spec=later(next(a for a in apps if a.id == first), state="deleted")))
    await harness.publish(*(AppChanged(spec=later(app)) for app in apps if app.id != first))
    await become(routes, hostnames)


async def test_a_released_hostname_is_its_organizations_for_a_while(
    harness: Harness, routes: Bucket, snapshot: Sequence[WorkloadSpec]
) -> None:
    await harness.start("domains")
    shop = spec()
    await harness.publish(AppCreated(spec=shop))
    await become(routes, {"shop.localhost": shop.id})
    await harness.publish(AppDeleted(spec=later(shop, state="deleted")))
    stranger = spec()
    await harness.publish(AppCreated(spec=stranger))
    fallback = f"shop-{stranger.id[-4:]}.localhost"
    await become(routes, {fallback: stranger.id})
    again = spec(organization=shop.organization)
    await harness.publish(AppCreated(spec=again))
    await become(routes, {fallback: stranger.id, "shop.localhost": again.id})
    entry = await routes.get("shop.localhost")
    assert entry is not None
    assert Route.model_validate_json(entry.value).revision == 3
    await harness.publish(AppDeleted(spec=later(again, state="deleted")))
    await become(routes, {fallback: stranger.id})
    harness.clock.advance(31 * 86_400)
    third = spec()
    await harness.publish(AppCreated(spec=third))
    await become(routes, {fallback: stranger.id, "shop.localhost": third.id})


async def test_a_lost_or_garbled_bucket_is_written_again(
    harness: Harness, routes: Bucket, snapshot: Sequence[WorkloadSpec]
) -> None:
    host = await harness.start("domains")
    shop, blog, old = spec("shop"), spec("blog"), spec("old")
    await harness.publish(*(AppCreated(spec=app) for app in (shop, blog, old)))
    everything = {"shop.localhost": shop.id, "blog.localhost": blog.id, "old.localhost": old.id}
    await become(routes, everything)
    before = await routes.get("old.localhost")
    assert before is not None
    await harness.publish(AppDeleted(spec=later(old, state="deleted")))
    del everything["old.localhost"]
    await become(routes, everything)
    js = harness.client.jetstream()
    await js.delete_stream("KV_routes")
    await declare(js)
    assert await found_in(routes) == {}
    await routes.put("old.localhost", before.value)
    await routes.put("blog.localhost", b"not a route")
    survey_now(harness, host)
    await become(routes, everything)


async def test_a_server_that_lost_its_disk_is_noticed_at_the_reconnect(
    harness: Harness, running: Servers, routes: Bucket, snapshot: Sequence[WorkloadSpec]
) -> None:
    await harness.start("domains")
    shop = spec()
    await harness.publish(AppCreated(spec=shop))
    await become(routes, {"shop.localhost": shop.id})
    running.nats.stop()
    shutil.rmtree(running.nats.folder / "jetstream")
    running.nats.start()
    running.nats.wait_ready()

    async def there_again() -> bool:
        try:
            await declare(harness.client.jetstream(timeout=1))
            return await found_in(routes) == {"shop.localhost": shop.id}
        except (NatsError, Unavailable):
            return False

    await eventually(there_again, seconds=30, what="the route again", every=0.2)


async def test_the_bucket_that_is_ahead_of_a_restored_database_is_outbid(
    harness: Harness, routes: Bucket, snapshot: Sequence[WorkloadSpec]
) -> None:
    shop = spec()
    newer = Route(hostname="shop.localhost", workload=new_id("app"), organization=new_id("org"), revision=7)
    foreign = newer.model_copy(update={"hostname": "foreign.localhost"})
    for one in (newer, foreign):
        await routes.put(one.hostname, one.model_dump_json().encode())
    host = await harness.start("domains")
    await harness.publish(AppCreated(spec=shop))
    await become(routes, {"shop.localhost": shop.id, "foreign.localhost": foreign.workload})
    entry = await routes.get("shop.localhost")
    assert entry is not None
    assert Route.model_validate_json(entry.value).revision == 8
    survey_now(harness, host)
    await harness.settle()
    assert (await found_in(routes))["foreign.localhost"] == foreign.workload


async def test_a_new_port_or_base_domain_is_announced(
    harness: Harness, routes: Bucket, snapshot: list[WorkloadSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = spec(region="eu")
    snapshot.append(shop)
    await harness.start("domains")
    await become(routes, {"shop.localhost": shop.id})
    await harness.stop("domains")
    monkeypatch.setenv("DOMAINS_PUBLIC_PORT", "8080")
    await harness.start("domains")
    await harness.event(HostnameAssigned, lambda e: e.url == "http://shop.localhost:8080")
    await harness.stop("domains")
    await harness.start("domains", base_domains={"eu": "eu.example.com"})
    await become(routes, {"shop.eu.example.com": shop.id})
    await harness.event(HostnameAssigned, lambda e: e.url == "http://shop.eu.example.com:8080")
    assert len(await assigned(harness)) == 3
