"""One gateway for each module of tests; every test makes customers of its own."""

from collections.abc import AsyncIterator

import pytest

from tests.customer import Customer
from tests.gateway.world import World, world
from tests.harness import Servers


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(running, tmp_path_factory.mktemp("gateway")) as opened:
        yield opened


@pytest.fixture
async def customer(here: World) -> Customer:
    """Somebody new, with 25.00 in the wallet."""
    return await here.customer()
