"""A Git server over SSH: OpenSSH's own, in a container on this machine's network, on one address."""

import io
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import docker
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from docker.models.containers import Container

from tests.harness import free_port
from tests.ports.git_server import Repositories

IMAGE = "berth-test/sshd:bookworm"
_DOCKERFILE = """\
FROM berth/git:bookworm
USER root
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends openssh-server \\
 && useradd --uid 1000 --create-home --shell /usr/bin/git-shell git \\
 && usermod --password '*' git \\
 && mkdir -p /run/sshd
"""
_GIT = 1000


def new_key() -> tuple[str, str]:
    """A private key, and the public one as a line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


class SshServer(Repositories):
    """Repositories are below `/srv`; nobody is let in before `admit`."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self.address = address
        self.port = free_port()
        self.host_key = ""
        self._client = docker.from_env()
        self._container: Container | None = None
        self._admitted: list[str] = []

    def url(self, name: str) -> str:
        return f"ssh://git@{self.address}:{self.port}/srv/{name}.git"

    @property
    def known(self) -> str:
        return f"[{self.address}]:{self.port} {self.host_key}"

    def admit(self, public_key: str) -> None:
        self._admitted.append(public_key)
        self._put({"authorized_keys": "".join(f"{key}\n" for key in self._admitted)})

    def serve(self, name: str) -> None:
        """What the repository is now."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(self.folder / f"{name}.git", f"{name}.git", filter=_of_git)
        assert self._container is not None
        self._container.put_archive("/srv", packed.getvalue())

    def start(self) -> None:
        """With a host key of its own each time."""
        self.stop()
        private, self.host_key = new_key()
        options = {
            "ListenAddress": self.address,
            "AuthorizedKeysFile": "/srv/authorized_keys",
            "StrictModes": "no",
            "PasswordAuthentication": "no",
            "PidFile": "none",
        }
        self._container = self._client.containers.create(
            IMAGE,
            ["/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-p", str(self.port), "-h", "/srv/host_key"]
            + [word for name, value in options.items() for word in ("-o", f"{name}={value}")],
            network_mode="host",
            labels={"berth-test": "sshd"},
        )
        self._put({"host_key": private, "authorized_keys": "".join(f"{key}\n" for key in self._admitted)})
        for bare in self.folder.glob("*.git"):
            self.serve(bare.stem)
        self._container.start()
        deadline = time.monotonic() + 10
        while b"Server listening" not in self._container.logs():
            assert time.monotonic() < deadline, self._container.logs()
            time.sleep(0.05)

    def said(self) -> str:
        assert self._container is not None
        return self._container.logs().decode()

    def stop(self) -> None:
        if self._container is not None:
            self._container.remove(force=True, v=True)
            self._container = None

    def close(self) -> None:
        self.stop()
        self._client.close()

    def make_image(self) -> None:
        for left in self._client.containers.list(all=True, filters={"label": "berth-test=sshd"}):
            left.remove(force=True, v=True)
        self._client.images.build(fileobj=io.BytesIO(_DOCKERFILE.encode()), tag=IMAGE, rm=True)

    def _put(self, files: Mapping[str, str]) -> None:
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(text), 0o600 if name == "host_key" else 0o644
                tar.addfile(info, io.BytesIO(text.encode()))
        assert self._container is not None
        self._container.put_archive("/srv", packed.getvalue())


def _of_git(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = _GIT
    return info


@contextmanager
def ssh_server(folder: Path, address: str) -> Iterator[SshServer]:
    server = SshServer(folder, address)
    try:
        server.make_image()
        server.start()
        yield server
    finally:
        server.close()
