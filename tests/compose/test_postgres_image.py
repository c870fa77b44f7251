"""The platform runs on a Postgres it did not start: the image made from Debian's packages, older than the one
that comes along, keeps the official image's contract."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path

import pytest
from contracts.events import AppCreated
from embedded.compose import LOCAL
from embedded.engine import Engine
from embedded.images import Images
from runtime.migrations import migrate
from runtime.permissions import SERVICES
from runtime.secrets import derive
from runtime.store import PLATFORM, Store
from runtime.telemetry import Telemetry
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.config import testcontainers_config

from tests.harness import SECRET
from tests.runtime.samples import created

ROOT = Path(__file__).parent.parent.parent
IMAGE, RECIPE = LOCAL["BERTH_POSTGRES_IMAGE"]


@pytest.fixture(scope="module")
def foreign() -> Iterator[str]:
    """Its address, as an administrator has it."""
    # The helper that removes what a killed run leaves is an image of its own, on a hub out of reach.
    testcontainers_config.ryuk_disabled = True
    with closing(Images(Engine(ROOT / ".cache" / "engine").host, ROOT / ".cache" / "images")) as images:
        images.ensure_image(IMAGE, images.recipe(RECIPE), images.ensure_base())
    container = PostgresContainer(IMAGE, username="operator", password=SECRET, dbname="berth", driver=None)
    with container:
        yield str(container.get_connection_url())


@pytest.fixture
async def store(foreign: str) -> AsyncIterator[Store]:
    packages = {e.name: e.value.partition(".")[0] for e in metadata.entry_points(group="berth.services")}
    services = [(name, packages[name], derive(SECRET, f"database/{name}")) for name in SERVICES]
    await asyncio.to_thread(migrate, foreign, services)
    telemetry = Telemetry()
    address = foreign.rpartition("@")[2]
    opened = Store(f"postgresql://{address}", "gateway", derive(SECRET, "database/gateway"), 2, telemetry)
    await opened.open()
    yield opened
    await opened.close()
    telemetry.close()


async def test_every_schema_comes_up_on_a_foreign_postgres(store: Store) -> None:
    async with store.transaction(PLATFORM) as tx:
        tx.publish(created("shop"))
    assert await store.read("select subject from gateway.outbox") == [(AppCreated.name,)]
