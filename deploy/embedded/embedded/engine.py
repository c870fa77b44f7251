"""The container engine of this machine: the one that answers, or one that is installed and started here.

An engine that somebody else runs is used and never stopped. One that was started here keeps its data in the
state folder and is stopped together with everything it left in the kernel.
"""

import http.client
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from signal import SIGKILL
from typing import Literal

import docker
from contracts.errors import InvalidInput, Unavailable
from docker.errors import DockerException

from embedded import leftovers
from embedded.daemon import Daemon, environment, identity

SOCKET = Path("/var/run/docker.sock")
PACKAGES = ("docker.io", "iptables", "iproute2")
# One small network per organization: the engine's own pools end after thirty.
POOL = "base=10.213.0.0/16,size=26"

Step = Literal["use", "start", "systemctl", "install"]


@dataclass(frozen=True)
class Machine:
    """What decides how to come to an engine."""

    docker_host: str | None
    answers: bool
    refuses: bool
    root: bool
    installed: bool
    systemd: bool
    debian: bool


def decide(machine: Machine) -> Step:
    """PURE. The next step towards an engine, or the one line that tells the operator his."""
    if machine.docker_host is not None and not machine.docker_host.startswith("unix://"):
        raise InvalidInput(
            f"DOCKER_HOST is {machine.docker_host}: apps run on this machine, "
            "so name a unix:// socket or unset it"
        )
    if machine.answers:
        return "use"
    if machine.refuses:
        raise Unavailable(
            "the container engine refuses this user: run `sudo usermod -aG docker $USER`, log in again, "
            "then start again"
        )
    if machine.docker_host is not None:
        raise Unavailable(f"no engine answers at DOCKER_HOST={machine.docker_host}: start it or unset it")
    if machine.installed:
        if machine.root:
            return "systemctl" if machine.systemd else "start"
        raise Unavailable("the container engine is not running: run `sudo systemctl start docker`")
    if machine.root and machine.debian:
        return "install"
    how = "as root it is installed by itself" if machine.debian else "with your system's packages"
    raise Unavailable(f"no container engine: install Docker Engine ({how}), then start again")


class Engine:
    def __init__(self, folder: Path, at: Path = SOCKET, say: Callable[[str], None] | None = None) -> None:
        self.folder = folder.absolute()
        self.daemon = Daemon("dockerd", self.folder)
        self._socket = at
        self._address = f"unix://{at}"
        self._say = say or (lambda line: None)
        self._data = self.folder / "data"
        # Sockets live below it, and their paths end at 107 characters; it is gone after a boot, like the
        # engine itself, and while it is there this installation owns an engine.
        self.exec_root = Path("/run", f"berth-{sha256(str(self.folder).encode()).hexdigest()[:10]}")

    @property
    def host(self) -> str:
        return os.environ.get("DOCKER_HOST") or self._address

    def ensure(self) -> str:
        """The address of an engine that answers."""
        step = decide(self._look())
        if step == "install":
            self._say(f"installing {', '.join(PACKAGES)}")
            install(PACKAGES, self.folder / "install.log")
            step = decide(self._look())
        if step == "systemctl":
            # The machine's own service from here on: `stop` leaves it alone.
            _checked(["systemctl", "start", "docker"], self.folder / "install.log")
        elif step == "start":
            self._say("starting the container engine")
            self._start()
            self._wait_ready()
        return self.host

    def stop(self) -> None:
        """Stops the engine if it was started here; afterwards nothing of it is left but its data."""
        if not self.exec_root.exists():
            return
        if self.daemon.pid() is None:
            # It died: containers may live on without it. It finds and ends them itself when it comes back.
            self._start()
        with suppress(Unavailable):
            self._wait_ready()
        bridges = self._bridges()
        shared = leftovers.engines_beside(self.daemon.pid())
        self.daemon.stop(seconds=60)
        self._kill_rest()
        leftovers.unmount_below(self.exec_root, self._data)
        if not shared:
            leftovers.remove_firewall(leftovers.ENGINE_CHAINS, bridges)
            leftovers.Before.load(self.exec_root / "before.json").restore()
        leftovers.remove_bridges([link for link in bridges if not (shared and link == "docker0")])
        self._socket.unlink(missing_ok=True)
        shutil.rmtree(self.exec_root)

    def _wait_ready(self) -> None:
        self.daemon.wait_ready(lambda: answers(self._address), seconds=60)

    def _look(self) -> Machine:
        host = self.host
        path = Path(host.removeprefix("unix://"))
        return Machine(
            docker_host=os.environ.get("DOCKER_HOST") or None,
            answers=host.startswith("unix://") and answers(host),
            refuses=path.exists() and not os.access(path, os.W_OK),
            root=os.geteuid() == 0,
            installed=all(shutil.which(name, path=_path()) for name in ("dockerd", "iptables", "ip")),
            systemd=Path("/run/systemd/system").exists(),
            debian=shutil.which("apt-get") is not None,
        )

    def _start(self) -> None:
        self.exec_root.mkdir(mode=0o711, exist_ok=True)
        before = self.exec_root / "before.json"
        if not before.exists():
            leftovers.Before.look().save(before)
        # A dead engine's pid files: it would take a stranger, or a zombie, for its own containerd and wait.
        for file in (self.exec_root / "dockerd.pid", self.exec_root / "containerd" / "containerd.pid"):
            if file.exists() and identity(int(file.read_text() or 0)) is None:
                file.unlink()
        self.daemon.start(
            [
                "dockerd",
                f"--host={self._address}",
                "--group=root",
                f"--data-root={self._data}",
                f"--exec-root={self.exec_root}",
                f"--pidfile={self.exec_root / 'dockerd.pid'}",
                f"--default-address-pool={POOL}",
                "--log-level=warn",
            ],
            engine_environment(os.environ),
        )

    def _bridges(self) -> list[str]:
        try:
            with closing(docker.APIClient(base_url=self._address, timeout=10)) as client:
                networks = client.networks(filters={"driver": "bridge"})
        except (DockerException, OSError):
            return ["docker0"]
        return [
            (network["Options"] or {}).get("com.docker.network.bridge.name") or f"br-{network['Id'][:12]}"
            for network in networks
        ]

    def _kill_rest(self) -> None:
        """containerd and its shims, when the engine could not end them; their argv names our folder."""
        mark = f"{self.exec_root}/".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                engine = (folder / "comm").read_text().startswith(("dockerd", "containerd"))
                if engine and mark in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), SIGKILL)


def answers(host: str) -> bool:
    connection = http.client.HTTPConnection("engine")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.settimeout(5)
    try:
        connection.sock.connect(host.removeprefix("unix://"))
        connection.request("GET", "/_ping")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def engine_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """PURE. What the engine needs to reach a registry through the operator's proxy."""
    names = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")
    passed = {name: ours[name] for name in (*names, *map(str.lower, names)) if name in ours}
    return environment(PATH=_path(), **passed)


def install(packages: tuple[str, ...], log: Path) -> None:
    """From Debian's or Ubuntu's own archive, without a question."""
    log.parent.mkdir(parents=True, exist_ok=True)
    options = ["-qq", "-o", "DPkg::Lock::Timeout=120"]
    _checked(["apt-get", *options, "update"], log)
    _checked(["apt-get", *options, "install", "--yes", "--no-install-recommends", *packages], log)


def _checked(argv: list[str], log: Path) -> None:
    with log.open("ab") as output:
        done = subprocess.run(
            argv,
            env=engine_environment(os.environ) | {"DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode != 0:
        raise Unavailable(f"`{' '.join(argv)}` failed with {done.returncode} (see {log})")


def _path() -> str:
    """Where daemons and network tools live, also for a user whose PATH leaves them out."""
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin:/sbin:/usr/bin:/bin"))
