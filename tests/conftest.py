"""What every test may ask for: the real servers, the machine's engine with its images, a harness.

`pytest -n 3` shares the run out between three processes. Each has its servers; the engine is one for all,
made by whoever comes first and stopped by whoever goes last.
"""

import fcntl
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from embedded.engine import Engine
from embedded.images import Images, trusted
from runtime.telemetry import configure_logging
from xdist.scheduler import LoadScopeScheduling

from tests.harness import Harness, Servers, open_harness, servers

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache"
# The areas whose tests run containers.
WITH_ENGINE = {"bench", "builder", "compose", "embedded", "journeys", "node_agent", "nodes", "ports"}

# Areas that meet on the engine, by a name or by its networks: one process runs them one after the other. What
# is not named here is shared out by file. The longest come first, so that nobody waits for one at the end.
TOGETHER = {
    "journeys": "platforms",
    "nodes": "platforms",
    "builder": "builds",
    "ports": "builds",
    "node_agent": "builds",
    "compose": "compose",
    "embedded": "embedded",
}
LONG = ("volumes", "scheduler", "system")

FURTHER_IMAGES = pytest.StashKey[Future[None]]()

configure_logging("warning")


class Shares(LoadScopeScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(file.split("/")[1], file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    config.option.loadscopereorder = False
    return Shares(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        order = [*dict.fromkeys(TOGETHER.values()), *LONG]
        # Those images take minutes on a fresh machine: whoever needs them comes last in his area.
        late = {item.path for item in items if "further_images" in getattr(item, "fixturenames", ())}

        def turn(item: pytest.Item) -> tuple[int, bool]:
            where = TOGETHER.get(area(item), area(item))
            return (order.index(where) if where in order else len(order), item.path in late)

        items.sort(key=turn)
    for item in items:
        for mark in item.iter_markers("promise"):
            for promise in mark.args:
                item.user_properties.append(("promise", promise))


def area(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT / "tests").parts[0]


@contextmanager
def alone(doing: str) -> Iterator[None]:
    """Of the processes of a run, one at a time."""
    with (CACHE / f"{doing}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def engine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The engine of this machine, or one of our own for the run, with every image there is."""
    if not {area(item) for item in request.session.items} & WITH_ENGINE:
        yield
        return

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    def make_further() -> None:
        with alone("further-images"):
            images.ensure_further()

    CACHE.mkdir(exist_ok=True)
    own = Engine(CACHE / "engine", say=say)
    with (CACHE / "engine.used").open("w") as used:
        try:
            with alone("engine"):
                fcntl.flock(used, fcntl.LOCK_SH)
                images = Images(own.ensure(), CACHE / "images", say=say, ca_bundle=trusted())
                images.ensure()
            try:
                # The other runtimes' take minutes on a fresh machine: made beside the tests that need none.
                with ThreadPoolExecutor(1) as beside:
                    request.config.stash[FURTHER_IMAGES] = beside.submit(make_further)
                    yield
                    images.end()
            finally:
                images.close()
        finally:
            with alone("engine"), suppress(BlockingIOError):
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
