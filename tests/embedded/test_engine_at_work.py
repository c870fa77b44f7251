"""A second engine in a network namespace of its own: its packet filter and bridges are not this machine's."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from embedded import wheels
from embedded.daemon import Daemon
from embedded.engine import Engine


@dataclass(frozen=True)
class Scratch:
    """An engine of its own, driven from inside its network namespace as `berth up` drives the machine's."""

    folder: Path
    namespace: int

    def inside(self, *argv: str) -> str:
        enter = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.namespace}", *argv]
        done = subprocess.run(enter, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def engine(self, words: str) -> str:
        script = f"""
            import json, os, time
            from pathlib import Path
            import docker
            from embedded.engine import Engine
            folder = Path({str(self.folder)!r})
            engine = Engine(folder / "engine", folder / "docker.sock")
        """
        return self.inside(sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(words))

    @property
    def dockerd(self) -> Daemon:
        return Daemon("dockerd", self.folder / "engine")

    def traces(self) -> dict[str, list[str]]:
        """Everything of the engine that is still to be seen on this machine."""
        state, socket = self.folder / "engine", self.folder / "docker.sock"
        exec_root = Engine(state).exec_root
        marks = (f"{state}/", f"{exec_root}/")
        processes = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                processes.append((folder / "cmdline").read_text())
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        rules = [line for line in self.inside("iptables-save").splitlines() if "DOCKER" in line]
        links = [link["ifname"] for link in json.loads(self.inside("ip", "--json", "link"))]
        return {
            "processes": [words for words in processes if any(mark in words for mark in marks)],
            "mounts": [line for line in mounts if any(mark in line for mark in marks)],
            "files": [str(path) for path in (exec_root, socket) if path.exists()],
            "rules": rules,
            "links": [link for link in links if link != "lo"],
        }


NOTHING: dict[str, list[str]] = {
    "processes": [],
    "mounts": [],
    "files": [],
    "rules": [],
    "links": [],
}


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scratch]:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    # The namespace lives as long as somebody holds it: first a sleeper, then our descriptor.
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as sleeper:
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{sleeper.pid}/ns/net") == own:
            assert sleeper.poll() is None
            time.sleep(0.01)
        namespace = os.open(f"/proc/{sleeper.pid}/ns/net", os.O_RDONLY)
        sleeper.kill()
    scratch = Scratch(tmp_path, namespace)
    try:
        yield scratch
        scratch.engine("engine.stop()")
    finally:
        os.close(namespace)


RUN_A_CONTAINER = f"""
    engine.ensure()
    client = docker.DockerClient(base_url=engine.host)
    import io, tarfile
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add({wheels.nats_server()!r}, "server")
    client.api.import_image_from_data(archive.getvalue(), repository="probe")
    network = client.networks.create("probe", driver="bridge")
    container = client.containers.run(
        "probe",
        ["/server", "--name", f"{{folder}}/engine/probe"],
        detach=True,
        network="probe",
        restart_policy={{"Name": "always"}},
    )
    container.reload()
    print(container.status)
    client.close()
"""


def test_an_engine_started_here_is_found_again_and_leaves_nothing(scratch: Scratch) -> None:
    assert scratch.engine(RUN_A_CONTAINER) == "running\n"
    pid = scratch.dockerd.pid()
    assert scratch.engine("print(engine.ensure())") == f"unix://{scratch.folder}/docker.sock\n"
    assert scratch.dockerd.pid() == pid
    assert scratch.traces() != NOTHING
    scratch.engine("engine.stop()")
    assert scratch.traces() == NOTHING


def test_what_a_killed_engine_left_running_is_ended_too(scratch: Scratch) -> None:
    scratch.engine(RUN_A_CONTAINER)
    scratch.dockerd.stop(signal.SIGKILL)
    assert any(process.startswith("/server") for process in scratch.traces()["processes"])
    scratch.engine("engine.stop()")
    assert scratch.traces() == NOTHING
