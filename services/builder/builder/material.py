"""What an app is made of where an image's own program makes it: its source, its variables, its sandbox.

Puts it together as the sandbox shall find it, and takes the result out as layers. Used by `classic.py` and
`lifecycle.py`, for one build.
"""

import asyncio
import io
import posixpath
import tarfile
import tempfile
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from contracts.archive import ArchiveLimits, entries
from contracts.credentials import RegistryLogin

from builder import image_archive
from builder.context import Survey
from builder.image_builder import BuiltImage, ImageBuilder, Order, Say, Step, StepFailed, Workshop

MIB = 1024 * 1024
_UNWANTED = (".git",)


@dataclass(frozen=True, slots=True)
class Material:
    images: ImageBuilder
    order: Order
    source: BinaryIO
    limits: ArchiveLimits
    # Of a repository that is not the app's own.
    limits_of_git: ArchiveLimits
    survey: Survey
    # What the app's variables are for a build.
    variables: Mapping[str, str]
    commit: str | None
    # The user and group the app's processes will run as.
    uid: int
    ca_bundle: bytes | None
    allow_private: bool
    say: Callable[[Step], Say]
    # The app's own, where one of these images may need it.
    login_for: Callable[[Collection[str]], Awaitable[RegistryLogin | None]]

    @property
    def largest(self) -> int:
        """Most bytes of the app's own layers."""
        return self.order.disk_mb * MIB


@dataclass(frozen=True, slots=True)
class Product:
    image: BuiltImage
    processes: Mapping[str, str]


class Pack:
    """A tar for a sandbox, owner by owner. Blocking."""

    def __init__(self, file: BinaryIO, user: int, group: int) -> None:
        self._tar = tarfile.open(fileobj=file, mode="w")  # noqa: SIM115
        self._file = file
        self._user, self._group = user, group
        self._folders: set[str] = set()

    def folder(self, path: str, mode: int = 0o755) -> None:
        path = path.strip("/")
        if path in self._folders:
            return
        self._folders.add(path)
        info = self._owned(tarfile.TarInfo(path))
        info.type, info.mode = tarfile.DIRTYPE, mode
        self._tar.addfile(info)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        top, _, name = path.strip("/").partition("/")
        self._parents(top, name)
        info = self._owned(tarfile.TarInfo(path.strip("/")))
        info.size, info.mode = len(data), mode
        self._tar.addfile(info, io.BytesIO(data))

    def tree(
        self,
        path: str,
        archive: BinaryIO,
        limits: ArchiveLimits,
        root: str = "",
        unwanted: Collection[str] = _UNWANTED,
    ) -> None:
        """A checked archive's entries below `root`; every folder they lie in belongs to the same owner."""
        self.folder(path)
        top = path.strip("/")
        for entry in entries(archive, limits):
            name = entry.name.removeprefix(root)
            outside = not entry.name.startswith(root) or f"{entry.name}/" == root
            if outside or any(part in unwanted for part in name.split("/")):
                continue
            self._parents(top, name)
            if entry.info.isdir():
                self.folder(f"{top}/{name}")
                continue
            info = self._owned(tarfile.TarInfo(f"{top}/{name}"))
            info.type = tarfile.REGTYPE if entry.info.isfile() else entry.info.type
            info.linkname, info.mtime = entry.info.linkname, int(entry.info.mtime)
            info.size = entry.info.size if entry.info.isfile() else 0
            info.mode = 0o755 if entry.info.mode & 0o100 else 0o644
            self._tar.addfile(info, entry.data)

    def close(self) -> None:
        self._tar.close()
        self._file.seek(0)

    def _parents(self, top: str, name: str) -> None:
        """The engine would make the folders that are missing, for itself."""
        parts = posixpath.dirname(name).split("/")
        for depth in range(1, len(parts) + 1):
            if parts[0]:
                self.folder("/".join((top, *parts[:depth])))

    def _owned(self, info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid, info.gid = self._user, self._group
        return info


async def text_of(shop: Workshop, path: str, most: int) -> bytes | None:
    """A small file a sandbox has left."""
    with tempfile.TemporaryFile() as wrapped:
        # The tar around it takes some room, too.
        if not await shop.take(path, wrapped, most + 64 * 1024):
            return None
        file = await asyncio.to_thread(image_archive.only_file, wrapped, posixpath.basename(path))
        data = await asyncio.to_thread(file.read, most + 1)
    if len(data) > most:
        raise StepFailed("image", f"{path} is larger than {most // 1024} KiB")
    return data
