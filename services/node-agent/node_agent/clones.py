"""Clones of the files of volumes: all of a volume as it is in one moment, in milliseconds and without room.

Only some file systems let two files share their blocks (XFS, btrfs). While they do, what is written to the
volume takes new blocks, and finding none would be the volume's failure: so there is a clone only while there
is room for all of it to be written anew, and never for longer than it is read. Blocking; used by `giving`.
"""

import errno
import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from contracts.copies import BLOCK
from contracts.errors import ProviderFailed

from node_agent.blocks import Image

_FICLONE = 0x40049409
_REFUSED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EXDEV, errno.ENOSYS}
# Of the disk, while there are clones; with less they go at once.
_LEAST_FREE = 256 * 1024 * 1024


class Clones:
    """Those of one workload, in a folder of their own on the file system of its volumes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has_room(self, files: Mapping[str, Path]) -> bool:
        """For all that was ever written to them: the rest is shared with nobody."""
        written = 0
        for file in files.values():
            with Image(file) as image:
                written += BLOCK * sum(1 for _ in image.filled())
        return written + _LEAST_FREE <= self._free()

    def make(self, files: Mapping[str, Path]) -> dict[str, Path] | None:
        """None: this file system has none."""
        made = {volume: self._folder / volume for volume in files}
        self._folder.mkdir(mode=0o700, parents=True)
        for volume, file in files.items():
            if not _clone(file, made[volume]):
                self.drop()
                return None
        return made

    def check(self) -> None:
        """Asked while they are read."""
        if self._free() < _LEAST_FREE:
            raise ProviderFailed("the disk is too full for the volumes to share blocks with a copy of them")

    def drop(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _free(self) -> int:
        disk = os.statvfs(self._folder if self._folder.exists() else self._folder.parent)
        return disk.f_bavail * disk.f_frsize


def _clone(file: Path, at: Path) -> bool:
    with file.open("rb") as source, at.open("xb") as target:
        try:
            # What is on its way to the disk is written first.
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        except OSError as error:
            if error.errno in _REFUSED:
                return False
            raise
    return True
