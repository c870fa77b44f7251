"""What every test may ask for: the real servers, and a harness with a database of its own."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from runtime.telemetry import configure_logging

from tests.harness import Harness, Servers, open_harness, servers

configure_logging("warning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("promise"):
            for promise in mark.args:
                item.user_properties.append(("promise", promise))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres and NATS, for the whole run."""
    with servers(tmp_path_factory.mktemp("servers")) as found:
        yield found


@pytest.fixture
async def harness(running: Servers, tmp_path: Path) -> AsyncIterator[Harness]:
    """Services on an own database and an empty stream."""
    opened = await open_harness(running, "test", tmp_path)
    try:
        yield opened
    finally:
        await opened.close()
