"""Hostnames on a real Postgres and NATS: given once, taken back, and healed when anything is lost."""

from contracts.events import AppChanged, AppCreated, AppDeleted, HostnameAssigned
from contracts.queries import Workloads, WorkloadsAfter
from contracts.workload import Route, WorkloadSpec
from runtime.bucket import Bucket
from runtime.streams import declare

from tests.harness import Harness, eventually
from tests.runtime.samples import spec


async def routes(harness: Harness) -> Bucket:
    return (await harness.everybody()).bucket("routes")


async def route(bucket: Bucket, hostname: str) -> Route | None:
    entry = await bucket.get(hostname)
    return None if entry is None else Route.model_validate_json(entry.value)


async def leads_to(bucket: Bucket, hostname: str, app: WorkloadSpec | None) -> bool:
    found = await route(bucket, hostname)
    return (None if found is None else found.workload) == (None if app is None else app.id)


async def test_an_app_gets_its_hostname_and_a_route(harness: Harness) -> None:
    bucket = await routes(harness)
    await harness.start("domains")
    shop = spec("shop")
    event = AppCreated(spec=shop)
    await harness.publish(event)
    await harness.publish_again(event)
    said = await harness.event(HostnameAssigned)
    assert (said.workload, said.hostname, said.url) == (shop.id, "shop.localhost", "http://shop.localhost")
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the route")
    await harness.settle()
    assert len(await harness.events(HostnameAssigned)) == 1


async def test_a_lost_beginning_is_healed_by_what_comes_after(harness: Harness) -> None:
    bucket = await routes(harness)
    await harness.start("domains")
    shop = spec("shop", generation=5)
    await harness.publish(AppChanged(spec=shop))
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the route")
    await harness.publish(AppCreated(spec=shop.model_copy(update={"generation": 1})))
    await harness.settle()
    assert len(await harness.events(HostnameAssigned)) == 1


async def test_a_deleted_app_leaves_its_hostname_to_the_next(harness: Harness) -> None:
    bucket = await routes(harness)
    await harness.start("domains")
    shop = spec("shop")
    await harness.publish(AppCreated(spec=shop))
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the route")
    gone = shop.model_copy(update={"generation": 2, "state": "deleted"})
    await harness.publish(AppDeleted(spec=gone))
    await eventually(lambda: leads_to(bucket, "shop.localhost", None), what="the end of the route")
    # What comes late about the dead does not bring it back.
    await harness.publish(AppChanged(spec=shop))
    following = spec("shop")
    await harness.publish(AppCreated(spec=following))
    await eventually(lambda: leads_to(bucket, "shop.localhost", following), what="the next one's route")
    found = await route(bucket, "shop.localhost")
    assert found is not None
    assert found.revision == 3


async def test_a_name_that_is_taken_gets_a_suffix_and_no_message_is_lost(harness: Harness) -> None:
    bucket = await routes(harness)
    await harness.start("domains")
    first, second = spec("shop"), spec("shop")
    await harness.publish(AppCreated(spec=first))
    await harness.settle()
    await harness.publish(AppCreated(spec=second))
    said = await harness.event(HostnameAssigned, lambda e: e.workload == second.id)
    assert said.hostname.startswith("shop-")
    await eventually(lambda: leads_to(bucket, said.hostname, second), what="the second's route")
    assert await leads_to(bucket, "shop.localhost", first)


async def test_the_owner_s_snapshot_heals_what_no_message_told(harness: Harness) -> None:
    shop, other = spec("shop"), spec("other")
    pages = {None: Workloads(specs=(shop,), next=shop.id), shop.id: Workloads(specs=(other,), next=None)}

    async def answer(question: WorkloadsAfter) -> Workloads:
        return pages[question.after]

    await harness.answers(WorkloadsAfter, answer)
    bucket = await routes(harness)
    await harness.start("domains")
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the first page")
    await eventually(lambda: leads_to(bucket, "other.localhost", other), what="the second page")


async def test_a_bucket_that_was_lost_is_written_again(harness: Harness) -> None:
    host = await harness.start("domains")
    shop = spec("shop")
    await harness.publish(AppCreated(spec=shop))
    bucket = await routes(harness)
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the route")
    await harness.client.jetstream().delete_key_value("routes")
    await declare(harness.client.jetstream())
    assert await leads_to(bucket, "shop.localhost", None)
    survey = next(loop for loop in host.service.loops if loop.name == "survey")
    survey.nudge()
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the route again")


async def test_a_table_behind_the_bucket_says_it_louder(harness: Harness) -> None:
    host = await harness.start("domains")
    shop = spec("shop")
    await harness.publish(AppCreated(spec=shop))
    bucket = await routes(harness)
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the route")
    stranger = spec("stranger")
    ahead = Route(
        hostname="shop.localhost", workload=stranger.id, organization=stranger.organization, revision=40
    )
    await bucket.put("shop.localhost", ahead.model_dump_json().encode())
    next(loop for loop in host.service.loops if loop.name == "survey").nudge()
    await eventually(lambda: leads_to(bucket, "shop.localhost", shop), what="the truth again")
