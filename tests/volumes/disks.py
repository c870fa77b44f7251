"""Disks in files, with the file systems an operator may have chosen for the state of his nodes."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from embedded.engine import install
from node_agent.commands import run


@contextmanager
def disk(folder: Path, kind: Literal["xfs", "ext4"], size_mb: int) -> Iterator[Path]:
    """Where it is mounted."""
    if shutil.which(f"mkfs.{kind}") is None:
        install(("xfsprogs",), folder / "install.log")
    file, point = folder / f"{kind}.img", folder / kind
    with file.open("wb") as made:
        made.truncate(size_mb * 1024 * 1024)
    run(f"mkfs.{kind}", "-q", str(file))
    point.mkdir()
    run("mount", "-o", "loop", str(file), str(point))
    try:
        yield point
    finally:
        run("umount", str(point))
        file.unlink()
