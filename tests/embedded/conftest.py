import os
import socket
from collections.abc import Callable

import pytest

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
