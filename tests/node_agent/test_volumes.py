"""Volumes on real loop devices and a real file system: their size is a wall, and their data stays."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from contracts.errors import ProviderFailed
from contracts.ids import new_id
from contracts.workload import Volume
from node_agent.commands import run
from node_agent.volumes import LoopVolumes
from runtime.clock import SystemClock

UID = 100_000
APP = new_id("app")
MIB = 1024 * 1024


def volume(size_mb: int = 16, **changes: object) -> Volume:
    return Volume.model_validate(
        {"id": new_id("vol"), "name": "data", "path": "/data", "size_mb": size_mb, **changes}
    )


class Moved(SystemClock):
    """A clock that can be set forward."""

    ahead = timedelta()

    def now(self):  # type: ignore[no-untyped-def]
        return super().now() + self.ahead


@pytest.fixture
async def volumes(tmp_path: Path) -> AsyncIterator[LoopVolumes]:
    made = LoopVolumes(tmp_path, lambda: "the key of this node", Moved(), keep_days=3)
    yield made
    for one in made.of(APP):
        await made.detach(one)


async def test_a_full_volume_is_full_for_its_owner_alone(volumes: LoopVolumes) -> None:
    full, other = volume(), volume()
    data, neighbour = await volumes.attach(full, APP, UID), await volumes.attach(other, APP, UID + 1)
    assert (data.stat().st_uid, neighbour.stat().st_uid) == (UID, UID + 1)
    with pytest.raises(OSError, match="No space left") as refused:
        (data / "big").write_bytes(os.urandom(17 * MIB))
    assert refused.value.errno == errno.ENOSPC
    (neighbour / "note").write_bytes(os.urandom(8 * MIB))
    used = {found.volume: found for found in await volumes.usage()}
    assert used[full.id].used_bytes > 0.9 * used[full.id].size_bytes
    assert 8 * MIB < used[other.id].used_bytes < 12 * MIB


async def test_data_stays_while_nothing_is_mounted_and_nothing_is_written_beside_it(
    volumes: LoopVolumes,
) -> None:
    one = volume()
    data = await volumes.attach(one, APP, UID)
    (data / "kept").write_text("kept")
    await volumes.detach(one.id)
    # An instance that was started now would find no folder, and not an empty one.
    assert not data.exists()
    assert (await volumes.attach(one, APP, UID) / "kept").read_text() == "kept"
    assert await volumes.attach(one, APP, UID) == data


async def test_it_grows_with_its_data_and_never_shrinks(volumes: LoopVolumes) -> None:
    small = volume(16)
    data = await volumes.attach(small, APP, UID)
    (data / "note").write_text("still here")
    large = small.model_copy(update={"size_mb": 64})
    with (data / "open").open("wb"), pytest.raises(ProviderFailed, match="target is busy"):
        await volumes.attach(large, APP, UID)
    data = await volumes.attach(large, APP, UID)
    assert (data / "note").read_text() == "still here"
    (data / "big").write_bytes(os.urandom(40 * MIB))
    await volumes.attach(small, APP, UID)
    (found,) = await volumes.usage()
    assert found.size_bytes > 50 * MIB


async def test_another_organization_does_not_get_it(volumes: LoopVolumes) -> None:
    one = volume()
    await volumes.attach(one, APP, UID)
    with pytest.raises(ProviderFailed, match="another organization"):
        await volumes.attach(one, APP, UID + 1000)


async def test_what_cannot_be_allocated_is_said_and_leaves_nothing(
    volumes: LoopVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    allocated: list[int] = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: allocated.append(1))
    huge = volume(1_048_576)
    with pytest.raises(ProviderFailed, match="no room for the volume data of 1048576 MB"):
        await volumes.attach(huge, APP, UID)
    assert volumes.of(APP) == set()
    # Nobody else's disk was full meanwhile.
    assert not allocated


async def test_encrypted_data_is_not_on_the_disk(volumes: LoopVolumes, tmp_path: Path) -> None:
    secret = volume(encrypted=True)
    data = await volumes.attach(secret, APP, UID)
    words = "the customer's own words " * 1000
    (data / "a-telling-name").write_text(words)
    await volumes.detach(secret.id)
    (file,) = (tmp_path / "files").glob("*/*.ext4")
    raw = await asyncio.to_thread(file.read_bytes)
    assert b"customer's own words" not in raw
    assert b"a-telling-name" not in raw
    assert (await volumes.attach(secret, APP, UID) / "a-telling-name").read_text() == words


async def test_a_volume_given_up_is_kept_for_some_days(volumes: LoopVolumes, tmp_path: Path) -> None:
    one = volume()
    (await volumes.attach(one, APP, UID) / "note").write_text("once more")
    await volumes.give_up(one.id)
    assert volumes.of(APP) == set()
    await volumes.purge()
    (aside,) = (tmp_path / "aside").iterdir()
    # Whoever works there leaves things beside it, and they are his.
    for name in ("notes", "a.b@yesterdayZ"):
        (tmp_path / "aside" / name).touch()
    # What an operator does who brings it back.
    aside.rename(tmp_path / "files" / APP / f"{one.id}.ext4")
    assert (await volumes.attach(one, APP, UID) / "note").read_text() == "once more"
    await volumes.give_up(one.id)
    Moved.ahead = timedelta(days=4)
    try:
        await volumes.purge()
    finally:
        Moved.ahead = timedelta()
    assert {file.name for file in (tmp_path / "aside").iterdir()} == {"notes", "a.b@yesterdayZ"}


async def test_a_volume_that_was_cut_off_is_mended_before_it_is_used(
    volumes: LoopVolumes, tmp_path: Path
) -> None:
    one = volume()
    (await volumes.attach(one, APP, UID) / "note").write_text("safe")
    await volumes.detach(one.id)
    file = tmp_path / "files" / APP / f"{one.id}.ext4"
    # A file system that was not let go of in order.
    await asyncio.to_thread(run, "debugfs", "-w", "-R", "set_super_value state 0", str(file))
    assert (await volumes.attach(one, APP, UID) / "note").read_text() == "safe"
