"""Volumes on a file system whose files share blocks: they stand still for a moment, whatever their size."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from contracts.errors import ProviderFailed
from contracts.workload import Volume
from node_agent.clones import Clones
from node_agent.commands import run
from node_agent.volumes import take_room

from tests.harness import Harness, eventually
from tests.node_agent.conftest import spec
from tests.volumes.conftest import Fleet, opened, volume
from tests.volumes.disks import disk

MIB = 1024 * 1024


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    with disk(tmp_path, "xfs", 12_000) as point:
        yield point


@pytest.fixture
async def fleet(harness: Harness, xfs: Path) -> AsyncIterator[Fleet]:
    async with opened(harness, xfs) as made:
        yield made


class Writer:
    """Counts in two volumes, always in the same order, and each time waits until it is on the disk."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self.number = 0
        self._stop = asyncio.Event()

    def _write(self) -> None:
        self.number += 1
        for folder in self._folders:
            with (folder / "count").open("ab", buffering=0) as file:
                file.write(f"{self.number:08}\n".encode() * 100)
                os.fsync(file.fileno())

    async def __aenter__(self) -> None:
        async def go_on() -> None:
            while not self._stop.is_set():
                await asyncio.to_thread(self._write)

        self._task = asyncio.create_task(go_on())

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._task


async def counted(fleet: Fleet, app: str, of: Volume, out: Path) -> int:
    """What a copy has of it, which is a file system in order."""
    image = fleet.volumes("n2") / "copies" / app / f"{of.id}.ext4"
    await asyncio.to_thread(run, "e2fsck", "-f", "-n", str(image))
    await asyncio.to_thread(run, "debugfs", "-R", f"dump /data/count {out}", str(image))
    return (await asyncio.to_thread(out.stat)).st_size // 900


async def test_a_large_volume_that_is_written_all_the_time_stands_still_for_a_moment(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, small = volume(3000), volume(64, name="index", path="/index")
    app = spec(volumes=(large, small))
    left = fleet.volumes("n1") / "given" / "cpy_before" / "clones" / large.id
    left.parent.mkdir(parents=True)
    left.write_bytes(b"of an agent that was killed")
    fleet.settings["copy_mb_per_second"] = 1000
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    await fleet.exists(fleet.data("n1", small))
    assert not left.exists()
    data = fleet.data("n1", large)
    with (data / "big").open("wb") as big:
        for _ in range(12):
            await asyncio.to_thread(big.write, os.urandom(100 * MIB))
    writer = Writer(data, fleet.data("n1", small))
    async with writer:
        await fleet.copied(app, "n1", "n2")
        cloned = await fleet.copied(app, "n1", "n2")
        counts = [await counted(fleet, app.id, of, tmp_path / "count") for of in (large, small)]
        # The same where the file system has no clones.
        monkeypatch.setattr("node_agent.clones._FICLONE", 0x4004FFFF)
        read = await fleet.copied(app, "n1", "n2")
    assert cloned.frozen_ms * 2 < read.frozen_ms, (cloned.frozen_ms, read.frozen_ms)
    assert counts[0] - counts[1] in (0, 1), "both are of the same moment"
    assert 0 < counts[0] <= writer.number

    async def dropped() -> bool:
        return not any((fleet.volumes("n1") / "given").iterdir())

    await eventually(dropped, what="the end of what was put aside")


def test_a_clone_is_of_its_moment_and_costs_nothing_once_it_is_gone(xfs: Path) -> None:
    file = made(xfs / "volume", 400)
    clones = Clones(xfs / "clones")
    assert clones.has_room({"vol": file})
    shared = clones.make({"vol": file})
    assert shared is not None
    with shared["vol"].open("rb") as clone:
        assert clone.read(4096) == b"1" * 4096
        written(file, b"2", 200)
        clone.seek(100 * MIB)
        assert clone.read(4096) == b"1" * 4096
    clones.check()
    clones.drop()
    assert not (xfs / "clones").exists()
    # Its blocks are its own again: with not one of them free it takes whatever is written to it.
    run("sync", "-f", str(xfs))
    free = os.statvfs(xfs)
    fill(xfs / "others", free.f_bavail * free.f_frsize // MIB - 1)
    with pytest.raises(ProviderFailed, match="too full"):
        clones.check()
    assert not clones.has_room({"vol": file})
    written(file, b"3", 400)


def test_where_files_share_no_blocks_there_are_no_clones(tmp_path: Path) -> None:
    with disk(tmp_path, "ext4", 400) as point:
        clones = Clones(point / "clones")
        assert clones.make({"vol": made(point / "volume", 16)}) is None
        assert not (point / "clones").exists()


def made(file: Path, size_mb: int) -> Path:
    """As a volume's is, with something in all of it but its last half."""
    with file.open("wb") as opened_:
        take_room(opened_.fileno(), size_mb * MIB)
    written(file, b"1", size_mb // 2)
    return file


def written(file: Path, word: bytes, size_mb: int) -> None:
    with file.open("r+b") as opened_:
        for _ in range(size_mb):
            opened_.write(word * MIB)
        os.fsync(opened_.fileno())


def fill(file: Path, size_mb: int) -> None:
    with file.open("wb") as opened_:
        while size_mb:
            # The last of what a disk has free it does not give in one piece.
            try:
                os.posix_fallocate(opened_.fileno(), opened_.tell(), size_mb * MIB)
            except OSError:
                size_mb //= 2
                continue
            opened_.seek(size_mb * MIB, os.SEEK_CUR)
