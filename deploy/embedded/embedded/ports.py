"""The ports of this installation: kept once chosen, so that every start is reached where the last one was."""

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from contracts.errors import Unavailable
from pydantic import BaseModel


class Ports(BaseModel, frozen=True):
    http: int
    api: int
    ops: int
    postgres: int = 15432
    nats: int = 14222
    ping: int = 18082
    # Of the ingress, where other machines are nodes too: for their ingresses, and where that leads.
    mesh: int = 7443
    here: int = 17480

    @classmethod
    def kept(cls, file: Path) -> "Ports | None":
        try:
            return cls.model_validate_json(file.read_text())
        except FileNotFoundError:
            return None

    def keep(self, file: Path) -> None:
        file.write_text(self.model_dump_json(indent=2) + "\n")


def settle(wanted: Ports, ours: Callable[[str], bool], variables: dict[str, str], host: str) -> Ports:
    """Takes a neighbour for what nobody has to know; asks the operator about the ports people use.

    `ours` tells of a name whether its server runs already; `variables` is how a port is chosen by hand.
    """
    chosen = wanted.model_dump()
    for name, port in chosen.items():
        if ours(name):
            continue
        address = host if name == "http" else "127.0.0.1"
        if name in variables:
            _demand(address, port, variables[name])
            continue
        others = set(chosen.values()) - {port}
        candidates = (candidate for candidate in range(port, 65536) if candidate not in others)
        chosen[name] = next(candidate for candidate in candidates if free("127.0.0.1", candidate))
    return Ports(**chosen)


def free(address: str, port: int) -> bool:
    try:
        _bind(address, port)
    except OSError:
        return False
    return True


def _demand(address: str, port: int, variable: str) -> None:
    try:
        _bind(address, port)
    except PermissionError:
        raise Unavailable(f"port {port} is for root only: choose another with {variable}") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise Unavailable(f"cannot listen on {address}:{port}: {error.strerror}") from error
        by = listener(port)
        whose = f" by {by}" if by else ""
        raise Unavailable(
            f"port {port} is in use{whose}: stop that, or choose another port with {variable}"
        ) from None


def _bind(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen()


def listener(port: int) -> str | None:
    """The program that listens there, as far as this user may know."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (folder / "fd").iterdir():
                if os.readlink(descriptor) in sockets:
                    return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
    return None


def _listening(port: int) -> list[str]:
    inodes = []
    for family in ("tcp", "tcp6"):
        with suppress(FileNotFoundError):
            for line in Path("/proc/net", family).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.append(fields[9])
    return inodes
