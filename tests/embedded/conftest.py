import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from embedded.engine import Engine

# Only root can start an engine; what everybody else is told instead is in test_engine.py.
collect_ignore = [] if os.geteuid() == 0 else ["test_engine_at_work.py"]


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A port nobody listens on, never the same one twice."""
    given: set[int] = set()

    def choose() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in given:
                given.add(port)
                return port

    return choose


@pytest.fixture(scope="session")
def engine_host() -> Iterator[str]:
    """The engine of this machine, or one for the run of the tests."""
    engine = Engine(Path(__file__).parents[2] / ".cache" / "engine")
    yield engine.ensure()
    engine.stop()
