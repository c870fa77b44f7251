"""`berth up` and `berth down` as an operator runs them, on the engine of this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import docker
import httpx
import pytest
from embedded.engine import Engine
from embedded.web import get

from tests.harness import free_port

PREFIX = "btup"
HOST = Engine(Path("unused")).host


@dataclass(frozen=True)
class Operator:
    state: Path
    settings: dict[str, str]

    def berth(self, *words: str) -> "subprocess.CompletedProcess[str]":
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("BERTH_", "GATEWAY_"))}
        return subprocess.run(
            [sys.executable, "-m", "runtime.cli", *words],
            env=plain | self.settings,
            cwd=self.state.parent,
            capture_output=True,
            text=True,
            check=False,
        )

    def up(self) -> str:
        done = self.berth("up")
        assert done.returncode == 0, done.stderr + self.berth("logs").stdout
        return done.stdout

    def visit(self) -> tuple[int, bytes]:
        return get(f"http://127.0.0.1:{self.settings['BERTH_HTTP_PORT']}", "hello.localhost")

    def instances(self) -> list[str]:
        with closing(docker.DockerClient(base_url=HOST)) as client:
            found = client.containers.list(filters={"label": f"berth.prefix={PREFIX}"})
            return [str(container.id) for container in found]

    def forget(self) -> None:
        """Images are state, which `down` keeps."""
        self.berth("down")
        with closing(docker.DockerClient(base_url=HOST)) as client:
            for image in client.images.list(filters={"reference": f"{PREFIX}/*"}):
                client.images.remove(str(image.id), force=True)

    def traces(self) -> list[str]:
        """Whatever of the installation is still in the machine."""
        found = self.instances()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if str(self.state).encode() in said:
                found.append(said.decode(errors="replace"))
        for argv in (["ip", "link"], ["iptables-save"], ["ip6tables-save"]):
            said_text = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
            found += [line for line in said_text.splitlines() if PREFIX in line.lower()]
        return found + self.mounts()

    def mounts(self) -> list[str]:
        return [line for line in Path("/proc/mounts").read_text().splitlines() if str(self.state) in line]

    def give_volume(self) -> None:
        """To the first app; returns when an instance has it."""
        known = json.loads((self.state / "administrator.json").read_text())
        with httpx.Client(base_url=f"http://127.0.0.1:{self.settings['BERTH_API_PORT']}") as client:
            logged_in = client.post("/api/auth/login", json=known).raise_for_status().json()
            client.headers["Authorization"] = f"Bearer {logged_in['token']}"
            [app] = client.get("/api/paas/apps").raise_for_status().json()["apps"]
            wanted = {"name": "data", "path": "/data", "size_mb": 16}
            client.post(f"/api/paas/apps/{app['id']}/volumes", json=wanted).raise_for_status()
        end = time.monotonic() + 30
        while not self.mounts():
            assert time.monotonic() < end
            time.sleep(0.2)


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(
        state=tmp_path / "state",
        settings={
            "BERTH_STATE": str(tmp_path / "state"),
            "BERTH_NODE": f"up-{os.getpid()}",
            "BERTH_HTTP_PORT": str(free_port()),
            "BERTH_API_PORT": str(free_port()),
            "NODE_AGENT_PREFIX": PREFIX,
            "BUILDER_PREFIX": PREFIX,
        },
    )
    yield operator
    operator.forget()


def test_up_again_and_down_and_up(operator: Operator) -> None:
    said = operator.up()
    assert f"app     http://hello.localhost:{operator.settings['BERTH_HTTP_PORT']}\n" in said
    assert f"docs    http://127.0.0.1:{operator.settings['BERTH_API_PORT']}/docs\n" in said
    assert operator.visit() == (200, b"Hello from Berth!\n")
    assert operator.berth("status").returncode == 0
    (instance,) = operator.instances()

    assert operator.up().splitlines()[-4:] == said.splitlines()[-4:]
    assert operator.instances() == [instance]

    operator.give_volume()
    assert operator.berth("down").returncode == 0
    assert operator.traces() == []
    assert operator.berth("status").returncode == 1

    began = time.monotonic()
    assert operator.up().splitlines()[-4:] == said.splitlines()[-4:]
    assert time.monotonic() - began < 20
    assert operator.visit() == (200, b"Hello from Berth!\n")
    assert json.loads((operator.state / "administrator.json").read_text())["password"] in said
    log = operator.berth("logs", "--lines", "100000").stdout
    assert log.count('"event":"build begun"') == 1
