"""The examples follow the conventions every app is run by."""

import http.client
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.harness import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("example", ["hello-python", "hello-dockerfile"])
def test_it_listens_on_its_port_and_ends_when_asked(example: str) -> None:
    port = free_port()
    app = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=EXAMPLES / example,
        env=os.environ | {"PORT": str(port), "GREETING": "Good day"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with app:
        assert app.stdout is not None
        assert app.stdout.readline() == f"listening on {port}\n"
        assert get(port, "/") == (200, "Good day\n")
        assert get(port, "/health") == (200, "ok\n")
        assert get(port, "/other")[0] == 404
        began = time.monotonic()
        app.send_signal(signal.SIGTERM)
        assert app.wait(timeout=5) == 0
        assert time.monotonic() - began < 2
