"""Volumes of this node: each a file system of a fixed size in a file, mounted here, bound into instances.

The size is the file system's own, so a full volume is full for its owner alone; its blocks are taken from
the disk when it is made, so nobody else's writes can make it fail. A volume that is given up is put aside for
some days. Blocking work runs in threads; called by the keepers before an instance is made.
"""

import asyncio
import errno
import os
import shutil
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog
from contracts.copies import volume_key
from contracts.errors import ProviderFailed
from contracts.workload import Volume
from runtime.clock import Clock

from node_agent.commands import run
from node_agent.fscrypt import protect
from node_agent.thaw import thaw

log = structlog.get_logger("node-agent.volumes")

_MIB = 1024 * 1024
_MOUNTS = Path("/proc/self/mountinfo")
# A folder of the volume, and not its root: where nothing is mounted there is no such folder, and an instance
# does not start on an empty one.
_DATA = "data"
_LOOP_OPTIONS = "loop,nosuid,nodev"
# e2fsck: 1 is "mended", from 4 on it could not be.
_MENDED = 1
_SUPERBLOCK = 1024


@dataclass(frozen=True, slots=True)
class VolumeUsage:
    volume: str
    workload: str
    used_bytes: int
    size_bytes: int


class Volumes(Protocol):
    async def attach(self, volume: Volume, workload: str, uid: int, key: str | None = None) -> Path:
        """Makes it if it is not there, grows it if it is too small; the folder to bind. `key`: of an
        encrypted one that was made on another node."""
        ...

    async def detach(self, volume: str) -> None: ...

    async def give_up(self, volume: str) -> None:
        """Its owner wants it no more. It is kept aside for a while."""
        ...

    def of(self, workload: str) -> set[str]:
        """Those that are here."""
        ...

    def files(self, workload: str) -> dict[str, Path]: ...

    def mounted_at(self, volume: str) -> Path | None: ...

    def held(self, volume: str) -> AbstractAsyncContextManager[object]:
        """Nobody attaches it, lets go of it or gives it up meanwhile."""
        ...

    def thaw(self) -> None:
        """Whatever stands still because somebody was killed goes on."""
        ...

    async def usage(self) -> tuple[VolumeUsage, ...]: ...

    async def purge(self) -> None:
        """Ends what was put aside long enough ago."""
        ...


class LoopVolumes:
    def __init__(
        self, folder: Path, key: Callable[[], str], clock: Clock, *, keep_days: float, first_uid: int = 0
    ) -> None:
        """`key`: the node's own; asked for when something is encrypted. `first_uid`: out here, the user that
        is root to instances; not 0 where the engine maps users."""
        self._first_uid = first_uid
        self._files = folder / "files"
        self._mounts = folder / "mounts"
        self._aside = folder / "aside"
        self._key = key
        self._clock = clock
        self._keep = timedelta(days=keep_days)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def attach(self, volume: Volume, workload: str, uid: int, key: str | None = None) -> Path:
        async with self._locks[volume.id]:
            return await asyncio.to_thread(self._attach, volume, workload, self._first_uid + uid, key)

    def _attach(self, volume: Volume, workload: str, uid: int, key: str | None) -> Path:
        file, point = self._files / workload / f"{volume.id}.ext4", self._mounts / volume.id
        if not file.exists():
            self._make(volume, file)
        if _size(file) < volume.size_mb * _MIB:
            # Not while it is mounted: not every kernel lets us. Who asks for more has stopped its instances.
            self._detach(volume.id)
            self._grow(volume, file)
        if not _mounted(point):
            self._mount(file, point)
        data = point / _DATA
        if not data.exists():
            # Complete or not there: what is made in between is made again.
            draft = point / f".{_DATA}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(mode=0o750)
            if volume.encrypted:
                protect(draft, key or volume_key(self._key(), volume.id))
            os.chown(draft, uid, uid)
            draft.rename(data)
        elif volume.encrypted:
            protect(data, key or volume_key(self._key(), volume.id))
        if data.stat().st_uid != uid:
            raise ProviderFailed(f"the volume {volume.name} belongs to another organization")
        return data

    def _make(self, volume: Volume, file: Path) -> None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        try:
            _allocate(draft, volume)
            # Its blocks are the volume's already: `nodiscard` does not give them back.
            options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
            run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "encrypt", "-E", options, str(draft))
            draft.rename(file)
        finally:
            draft.unlink(missing_ok=True)
        log.info("volume made", volume=volume.id, size_mb=volume.size_mb)

    def _mount(self, file: Path, point: Path) -> None:
        point.mkdir(mode=0o711, parents=True, exist_ok=True)
        run("e2fsck", "-p", str(file), good=(0, _MENDED))
        run("mount", "-t", "ext4", "-o", _LOOP_OPTIONS, str(file), str(point))

    def _grow(self, volume: Volume, file: Path) -> None:
        _allocate(file, volume)
        run("e2fsck", "-f", "-p", str(file), good=(0, _MENDED))
        run("resize2fs", str(file))
        log.info("volume grown", volume=volume.id, size_mb=volume.size_mb)

    async def detach(self, volume: str) -> None:
        async with self._locks[volume]:
            await asyncio.to_thread(self._detach, volume)

    def _detach(self, volume: str) -> None:
        point = self._mounts / volume
        if _mounted(point):
            run("umount", str(point))
        if point.exists():
            point.rmdir()

    async def give_up(self, volume: str) -> None:
        async with self._locks[volume]:
            await asyncio.to_thread(self._give_up, volume)
        self._locks.pop(volume, None)

    def _give_up(self, volume: str) -> None:
        self._detach(volume)
        file = next(self._files.glob(f"*/{volume}.ext4"), None)
        if file is None:
            return
        self._aside.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = self._aside / f"{file.parent.name}.{volume}@{self._clock.now():%Y%m%dT%H%M%SZ}"
        file.rename(aside)
        log.info("volume put aside", volume=volume, file=str(aside), days=self._keep.days)

    async def purge(self) -> None:
        await asyncio.to_thread(self._purge)

    def _purge(self) -> None:
        if not self._aside.is_dir():
            return
        # Others are somebody's who works on them.
        for file in self._aside.glob("*.*@*Z"):
            try:
                since = datetime.strptime(file.name.partition("@")[2], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            except ValueError:
                continue
            if self._clock.now() - since >= self._keep:
                file.unlink()
                log.info("volume ended", file=str(file))

    def of(self, workload: str) -> set[str]:
        return {file.stem for file in (self._files / workload).glob("*.ext4")}

    def files(self, workload: str) -> dict[str, Path]:
        return {file.stem: file for file in (self._files / workload).glob("*.ext4")}

    def mounted_at(self, volume: str) -> Path | None:
        point = self._mounts / volume
        return point if _mounted(point) else None

    def held(self, volume: str) -> AbstractAsyncContextManager[object]:
        return self._locks[volume]

    def thaw(self) -> None:
        with suppress(FileNotFoundError):
            for point in self._mounts.iterdir():
                if _mounted(point):
                    thaw(str(point))

    async def usage(self) -> tuple[VolumeUsage, ...]:
        return await asyncio.to_thread(lambda: tuple(self._usage()))

    def _usage(self) -> Iterator[VolumeUsage]:
        for file in sorted(self._files.glob("*/*.ext4")):
            point = self._mounts / file.stem
            if _mounted(point):
                found = os.statvfs(point)
                size = found.f_blocks * found.f_frsize
                yield VolumeUsage(file.stem, file.parent.name, size - found.f_bfree * found.f_frsize, size)


def take_room(descriptor: int, size: int) -> None:
    """All blocks of a file of this size; `OSError` when the disk has them not."""
    missing = size - os.fstat(descriptor).st_blocks * 512
    disk = os.statvfs(descriptor)
    if missing > disk.f_bavail * disk.f_frsize:
        # Trying would leave nobody else any room until it failed.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.posix_fallocate(descriptor, 0, size)


def _allocate(file: Path, volume: Volume) -> None:
    try:
        with file.open("ab") as opened:
            take_room(opened.fileno(), volume.size_mb * _MIB)
            os.fsync(opened.fileno())
    except OSError as error:
        raise ProviderFailed(
            f"there is no room for the volume {volume.name} of {volume.size_mb} MB: {error.strerror}"
        ) from error


def _size(file: Path) -> int:
    """Of the file system: the file around it may have grown already when the machine failed."""
    with file.open("rb") as opened:
        opened.seek(_SUPERBLOCK)
        block = opened.read(28)
    blocks, exponent = struct.unpack_from("<I", block, 4)[0], struct.unpack_from("<I", block, 24)[0]
    return int(blocks * (1024 << exponent))


def _mounted(point: Path) -> bool:
    # The fifth field of a line is the mount point.
    mounts = (line.split(" ", 5)[4] for line in _MOUNTS.read_text().splitlines())
    return str(point.absolute()) in mounts
