"""How a stream ends: by itself, with the process, and not for want of a builder."""

import asyncio

import pytest

from tests.customer import Customer, Refused
from tests.gateway.reader import Reader, building, end, saw, subscriptions
from tests.gateway.world import door, opened
from tests.harness import Harness, eventually


async def test_a_stream_ends_itself_and_says_so(harness: Harness) -> None:
    async with opened(harness, stream_seconds=0.5) as here:
        customer = await here.customer()
        deployment = await building(here, customer, "long-one")
        await here.log(deployment, 1, live=False)
        reader = Reader(customer, deployment)
        async with asyncio.timeout(30):
            await reader.read()
        assert reader.kinds == ["status", "reconnect"]
        await here.log(deployment, 2, live=False)
        await reader.read()
        assert reader.seen == [1, 2]


async def test_without_a_builder_the_stream_waits_for_one(harness: Harness) -> None:
    async with opened(harness) as here:
        customer = await here.customer()
        deployment = await building(here, customer, "waits")
        here.parts.away = True
        reader = Reader(customer, deployment)
        with pytest.raises(Refused) as refused:
            await customer.call("GET", f"/api/paas/deployments/{deployment}/log")
        assert refused.value.status == 503
        async with reader.reading():

            async def listening() -> bool:
                return await subscriptions(here) == 1

            await eventually(listening, what="the subscription")
            await here.log(deployment, 1, stored=False)
            await saw(reader, 1)
            await here.log(deployment, 1, 2, live=False)
            await end(here, deployment)
            await asyncio.sleep(1.2)
            assert "end" not in reader.kinds
            here.parts.away = False
        assert reader.seen == [1, 2]
        assert reader.kinds[-1] == "end"


async def test_a_shutdown_ends_streams_at_once(harness: Harness) -> None:
    async with opened(harness) as here:
        customer = await here.customer()
        deployment = await building(here, customer, "shut-down")
        await here.log(deployment, 1, live=False)
        async with door(here.host.service) as (server, url):
            other = Customer(url, token=customer.token, organization=customer.organization)
            async with other:
                reader = Reader(other, deployment)
                async with reader.reading():
                    await saw(reader, 1)
                    assert here.host.service.on_closing is not None
                    here.host.service.on_closing()
                    server.should_exit = True
                    begin = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begin < 4
        assert reader.kinds == ["status", "reconnect"]
