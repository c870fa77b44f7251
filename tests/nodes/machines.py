"""Clean servers to be made nodes: containers with an engine of their own inside, on a network the
tests make. The real thing but for the kernel, which they share with this machine, and for systemd.
"""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import NotFound
from docker.models.containers import Container
from embedded import wheels

IMAGE = "berth-test/server:1"
NETWORK = "berth-test-servers"
PROBE = "berth-test/probe:1"
_HERE = Path(__file__).parent / "server"
# Where a machine that inspects TLS keeps what its package index is reached with.
_OURS = ("/etc/ssl/certs/ca-certificates.crt", "/opt/pypi", "/opt/pypi-more", "/opt/wheels", "/etc/pip.conf")

# All that an engine inside needs; not `--privileged`, which asks for what a machine may not have itself.
_CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "NET_RAW", "SYS_PTRACE", "SYS_CHROOT", "MKNOD")

# As many as volumes may need.
_LOOPS = 32


@dataclass
class Server:
    container: Container
    address: str

    def run(self, *argv: str, told: Mapping[str, str] | None = None) -> str:
        """What it prints; fails with that when it fails."""
        code, output = self.tries(*argv, told=told)
        assert code == 0, f"{argv}: {output}{self.log() if argv[0] == 'bash' else ''}"
        return output

    def tries(self, *argv: str, told: Mapping[str, str] | None = None) -> tuple[int, str]:
        code, output = self.container.exec_run(list(argv), environment=dict(told or {}))
        assert isinstance(output, bytes)
        return int(code or 0), output.decode(errors="replace")

    def has(self, path: str) -> bool:
        return self.tries("test", "-e", path)[0] == 0

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
        assert self.container.put_archive("/", packed.getvalue())

    def make_devices(self) -> None:
        """For volumes: its /dev comes without them."""
        each = f"for n in $(seq 0 {_LOOPS - 1}); do mknod /dev/loop$n b 7 $n; done"
        self.run("bash", "-ec", f"mknod /dev/loop-control c 10 237; {each}")

    def open_ssh(self, password: str) -> None:
        """A real sshd, as a hosting company hands a server over."""
        self.run("ssh-keygen", "-A")
        self.put("/etc/ssh/sshd_config.d/root.conf", b"PermitRootLogin yes\nPasswordAuthentication yes\n")
        self.put("/root/password", f"root:{password}\n".encode(), mode=0o600)
        self.run("bash", "-c", "chpasswd < /root/password && rm /root/password")
        told = "".join(f"{name}={value}\n" for name, value in _told().items())
        self.run("mkdir", "-p", "/run/sshd")
        self.put("/etc/environment", told.encode())
        self.run("/usr/sbin/sshd")

    def fingerprint(self) -> str:
        return self.run("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub").split()[1]

    def load_probe(self) -> None:
        """An image that answers HTTP, at its engine: no registry stands between them here."""
        self.put("/probe.tar", probe())
        self.run("docker", "import", "--change", PROBE_COMMAND, "/probe.tar", PROBE)

    def log(self) -> str:
        return self.tries(
            "bash",
            "-c",
            "tail -n 30 /var/lib/berth-node/logs/berth-*.log; docker ps -a",
        )[1]


# nats-server is one file that needs nothing, and its monitoring answers every GET of / with 200.
PROBE_COMMAND = 'ENTRYPOINT ["/server", "-a", "0.0.0.0", "-p", "4222", "-m", "8080"]'


def probe() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(wheels.nats_server(), "server")
    return packed.getvalue()


def _told() -> dict[str, str]:
    """How this machine reaches a package index."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE")
    }


def address_of(container: Container) -> str:
    container.reload()
    [found] = container.attrs["NetworkSettings"]["Networks"].values()
    return str(found["IPAddress"])


@contextmanager
def network(name: str = NETWORK) -> Iterator[str]:
    """The address of this machine on it."""
    client = docker.from_env()
    try:
        sweep(client, name)
        made = client.networks.create(name, driver="bridge")
        made.reload()
        try:
            yield made.attrs["IPAM"]["Config"][0]["Gateway"]
        finally:
            sweep(client, name)
    finally:
        client.close()


def sweep(client: Any, network: str) -> None:
    """Of this run or of one that was cut off."""
    for container in client.containers.list(all=True, filters={"network": network}, ignore_removed=True):
        with suppress(NotFound):
            container.remove(force=True, v=True)
    for found in client.networks.list(names=[network]):
        found.remove()


@contextmanager
def server(name: str, network: str = NETWORK, shows: Sequence[Path] = ()) -> Iterator[Server]:
    """`shows`: folders of this machine that it sees in the same place."""
    client = docker.from_env()
    try:
        subprocess.run(
            ["docker", "build", "--quiet", "--tag", IMAGE, str(_HERE)],
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
            check=True,
            capture_output=True,
        )
        told = [f"--env={name}={value}" for name, value in _told().items()]
        bound = [f"--volume={path}:{path}:ro" for path in (*map(Path, _OURS), *shows) if path.exists()]
        # By the client program: the SDK has no word for the last of the options.
        begun = subprocess.run(
            ["docker", "run", "--detach", "--init", f"--hostname={name}", f"--network={network}"]
            + [f"--cap-add={capability}" for capability in _CAPABILITIES]
            + [f"--security-opt={option}=unconfined" for option in ("seccomp", "apparmor", "systempaths")]
            + ["--device-cgroup-rule=a *:* rwm", "--volume=/sys/fs/cgroup:/sys/fs/cgroup"]
            # Its engine's layers cannot lie on layers of ours; and what goes down with a machine goes.
            + ["--volume=/var/lib/docker", "--tmpfs=/run:exec", *bound, *told, IMAGE],
            check=True,
            capture_output=True,
            text=True,
        )
        container = client.containers.get(begun.stdout.strip())
        try:
            yield Server(container, address_of(container))
        finally:
            container.remove(force=True, v=True)
    finally:
        client.close()
