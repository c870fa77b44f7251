"""The log of a deployment: pages, and a live stream without a gap or a double, whatever happens."""

import asyncio

import pytest

from tests.customer import Customer, Refused
from tests.gateway.reader import Reader, building, end, saw, subscriptions
from tests.gateway.world import World
from tests.harness import eventually


@pytest.mark.promise("R8.1", "R8.2")
async def test_a_stream_joins_stored_and_live_lines(here: World, customer: Customer) -> None:
    deployment = await building(here, customer, "joined")
    await here.log(deployment, *range(1, 6), live=False)
    reader = Reader(customer, deployment)
    async with reader.reading():
        await saw(reader, 5)
        await here.log(deployment, 6, 7)
        await saw(reader, 7)
        # The same again, older ones, and some that overlap.
        await here.log(deployment, 5, 6, 7, stored=False)
        await here.log(deployment, 7, 8, stored=False)
        await here.log(deployment, 8, live=False)
        await saw(reader, 8)
        # A report was lost: the next one shows the gap, and the stored lines fill it.
        await here.log(deployment, 9, 10, live=False)
        await here.log(deployment, 11)
        await saw(reader, 11)
        # Live before stored: they wait for the ones in between.
        await here.log(deployment, 14, stored=False)
        await asyncio.sleep(0.1)
        assert reader.seen[-1] == 11
        await here.log(deployment, 12, 13, 14, live=False)
        await saw(reader, 14)
        await here.log(deployment, 15, live=False)
        await end(here, deployment)
    assert reader.seen == list(range(1, 16))
    assert reader.kinds == ["status", "end"]
    assert reader.events[0][1] == {"status": "building", "reason": None}
    assert reader.events[1][1] == {"status": "failed", "reason": "boom"}


async def test_a_client_that_comes_again_misses_and_repeats_nothing(here: World, customer: Customer) -> None:
    deployment = await building(here, customer, "resumed")
    reader = Reader(customer, deployment)
    written = 0
    stop = asyncio.Event()

    async def write() -> None:
        nonlocal written
        while not stop.is_set():
            # Now in a report, now only stored, now the other way round for a moment.
            written += 1
            if written % 3:
                await here.log(deployment, written)
            else:
                await here.log(deployment, written, stored=False)
                await here.log(deployment, written, live=False)
            await asyncio.sleep(0.002)

    writing = asyncio.create_task(write())
    for part in range(1, 9):
        limit = 20 * part
        await reader.read(until=lambda r, limit=limit: len(r.seen) >= limit)
    stop.set()
    await writing
    await end(here, deployment)
    await reader.read()
    assert reader.seen == list(range(1, written + 1))
    assert reader.kinds[-1] == "end"


async def test_a_log_that_has_ended_is_told_whole(here: World, customer: Customer) -> None:
    deployment = await building(here, customer, "finished-log")
    await here.log(deployment, *range(1, 2502), live=False)
    await end(here, deployment)
    reader = Reader(customer, deployment)
    await reader.read()
    assert reader.seen == list(range(1, 2502))
    assert reader.kinds == ["end"]
    # And from any place in it.
    reader.seen = [2499]
    await reader.read()
    assert reader.seen == [2499, 2500, 2501]
    page = await customer.call("GET", f"/api/paas/deployments/{deployment}/log")
    assert (len(page["lines"]), page["next"]) == (1000, 1000)
    page = await customer.call("GET", f"/api/paas/deployments/{deployment}/log?after=2499")
    assert [line["text"] for line in page["lines"]] == ["line 2500 \u2713", "line 2501 \u2713"]
    assert page["next"] == 2501
    page = await customer.call("GET", f"/api/paas/deployments/{deployment}/log?after=2501")
    assert (page["lines"], page["next"]) == ([], 2501)


@pytest.mark.parametrize("place", ["-1", "x", "1.5", "99999999999999999999"])
async def test_a_place_that_is_none(here: World, customer: Customer, place: str) -> None:
    deployment = await building(here, customer, f"place-{len(place)}{place[0].strip('-') or 'm'}-log")
    for path in ("log", "log/stream"):
        with pytest.raises(Refused) as refused:
            await customer.call("GET", f"/api/paas/deployments/{deployment}/{path}?after={place}")
        assert refused.value.status == 422
    headers = {"Last-Event-ID": place}
    with pytest.raises(Refused) as refused:
        await customer.call("GET", f"/api/paas/deployments/{deployment}/log/stream", headers=headers)
    assert refused.value.status == 422


async def test_the_stream_goes_on_to_the_end_of_the_deployment(here: World, customer: Customer) -> None:
    deployment = await building(here, customer, "whole-way")
    reader = Reader(customer, deployment)
    async with reader.reading():
        await here.log(deployment, 1)
        await saw(reader, 1)
        spec = await here.build(deployment)

        async def deploying() -> bool:
            return ("status", {"status": "deploying", "reason": None}) in reader.events

        await eventually(deploying, what="the change of status")
        await here.roll_out(spec)
    assert reader.kinds == ["status", "status", "end"]
    assert reader.events[-1][1] == {"status": "running", "reason": None}


async def test_a_reader_who_leaves_leaves_nothing_behind(here: World, customer: Customer) -> None:
    deployment = await building(here, customer, "left")
    await here.log(deployment, 1, live=False)
    assert await subscriptions(here) == 0
    readers = [Reader(await here.visitor(), deployment) for _ in range(5)]
    for reader in readers:
        reader.customer.token, reader.customer.organization = customer.token, customer.organization
    tasks = [asyncio.create_task(reader.read()) for reader in readers]
    for reader in readers:
        await saw(reader, 1)
    assert await subscriptions(here) == 5
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    async def none_left() -> bool:
        return await subscriptions(here) == 0

    await eventually(none_left, what="the end of the subscriptions")
