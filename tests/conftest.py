"""What every test may ask for: the real servers, the machine's engine with its images, a harness."""

import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from embedded.engine import Engine
from embedded.images import Images, trusted
from runtime.telemetry import configure_logging

from tests.harness import Harness, Servers, open_harness, servers

ROOT = Path(__file__).parent.parent
# The areas whose tests run containers.
WITH_ENGINE = {"bench", "builder", "compose", "embedded", "journeys", "node_agent", "nodes", "ports"}

FURTHER_IMAGES = pytest.StashKey[Future[None]]()

configure_logging("warning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("promise"):
            for promise in mark.args:
                item.user_properties.append(("promise", promise))


@pytest.fixture(scope="session", autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The engine of this machine, or one of our own for the run, with every image there is."""
    areas = {item.path.relative_to(ROOT / "tests").parts[0] for item in request.session.items}
    if not areas & WITH_ENGINE:
        yield
        return

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    own = Engine(ROOT / ".cache" / "engine", say=say)
    images = Images(own.ensure(), ROOT / ".cache" / "images", say=say, ca_bundle=trusted())
    try:
        images.ensure()
        # The other runtimes' take minutes on a fresh machine: they are made beside the tests that need none.
        with ThreadPoolExecutor(1) as beside:
            request.config.stash[FURTHER_IMAGES] = beside.submit(images.ensure_further)
            yield
            images.end()
    finally:
        images.close()
        own.stop()


@pytest.fixture(scope="session")
def further_images(engine: None, request: pytest.FixtureRequest) -> None:
    """The images of every runtime, made when this returns."""
    request.config.stash[FURTHER_IMAGES].result(timeout=600)


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Postgres and NATS, for the whole run."""
    folder = tmp_path_factory.mktemp("servers")
    with servers(folder) as found:
        yield found
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def harness(running: Servers, tmp_path: Path) -> AsyncIterator[Harness]:
    """Services on an own database and an empty stream."""
    opened = await open_harness(running, "test", tmp_path)
    try:
        yield opened
    finally:
        await opened.close()
