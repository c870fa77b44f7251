"""What a node holds of copies, whatever becomes of its disk."""

import errno
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from contracts.copies import BLOCK, OfferedVolume, digest_of
from contracts.errors import ProviderFailed
from contracts.ids import new_id
from node_agent.blocks import Image
from node_agent.holdings import CHECKED, Draft, Holdings, Manifest, image_of
from node_agent.scrub import Scrub

from tests.harness import ShiftedClock

APP, VOLUME = new_id("app"), new_id("vol")
BLOCKS = 8


def begun(holdings: Holdings, words: Mapping[int, bytes], blocks: int = BLOCKS) -> tuple[Draft, Manifest]:
    """With blocks that begin with these words."""
    draft = holdings.begin(APP, {VOLUME: OfferedVolume(id=VOLUME, size=blocks * BLOCK)})
    for index, word in words.items():
        draft.put(VOLUME, index, word.ljust(BLOCK, b"\0"))
    made = Manifest(
        id=new_id("cpy"),
        workload=APP,
        taken_at=datetime.now(UTC),
        digest=draft.digest(),
        volumes=(VOLUME,),
    )
    return draft, made


def taken(holdings: Holdings, words: Mapping[int, bytes], blocks: int = BLOCKS) -> Manifest:
    draft, manifest = begun(holdings, words, blocks)
    draft.commit(manifest)
    return holdings.apply(APP)


def whole(holdings: Holdings) -> str:
    with Image(image_of(holdings.folder(APP), VOLUME)) as image:
        return digest_of({VOLUME: image.digests()})


@pytest.fixture
def holdings(tmp_path: Path) -> Holdings:
    return Holdings(tmp_path)


@pytest.mark.parametrize("left", ["nothing", "no manifest", "half a manifest", "no file", "half a file"])
def test_what_is_not_all_there_is_no_copy_and_the_next_comes_whole(holdings: Holdings, left: str) -> None:
    taken(holdings, {0: b"one", 5: b"two"})
    copy = holdings.folder(APP)
    match left:
        case "nothing":
            copy.rename(copy.with_name("elsewhere"))
            (copy.with_name("elsewhere") / "copy.json").unlink()
        case "no manifest":
            (copy / "copy.json").unlink()
        case "half a manifest":
            (copy / "copy.json").write_text('{"id": ')
        case "no file":
            image_of(copy, VOLUME).unlink()
        case "half a file":
            os.truncate(image_of(copy, VOLUME), 3 * BLOCK)
    assert holdings.all() == {}
    assert holdings.finish(APP) is None
    draft, manifest = begun(holdings, {0: b"one", 5: b"three"})
    draft.commit(manifest)
    assert holdings.finish(APP) == manifest
    assert whole(holdings) == manifest.digest
    assert holdings.all() == {APP: manifest}


def test_a_difference_to_what_is_gone_is_nothing(holdings: Holdings) -> None:
    taken(holdings, {0: b"one", 5: b"two"})
    draft, manifest = begun(holdings, {5: b"three"})
    draft.commit(manifest)
    image_of(holdings.folder(APP), VOLUME).unlink()
    # An agent that starts says so and goes on.
    holdings.open()
    assert holdings.finish(APP) is None
    assert holdings.all() == {}
    # The same in the midst of it.
    taken(holdings, {0: b"one", 5: b"two"})
    draft, manifest = begun(holdings, {5: b"three"})
    draft.commit(manifest)
    (holdings.folder(APP) / "copy.json").unlink()
    with pytest.raises(ProviderFailed, match="is gone; it begins again"):
        holdings.apply(APP)
    assert taken(holdings, {0: b"one", 5: b"three"}).digest == whole(holdings)


def test_an_agent_starts_though_there_is_no_room_for_a_copy(
    holdings: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(holdings, {0: b"one"})
    draft, manifest = begun(holdings, {0: b"one", 5: b"two"})
    draft.commit(manifest)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(Image, "write", full)
        holdings.open()
    assert holdings.finish(APP) == manifest
    assert whole(holdings) == manifest.digest


def test_a_copy_that_grows_is_a_copy_all_the_time(holdings: Holdings) -> None:
    first = taken(holdings, {0: b"one"})
    draft, manifest = begun(holdings, {9: b"two"}, blocks=12)
    draft.commit(manifest)
    # An agent that was killed when it had begun to put it in its place.
    with Image(image_of(holdings.folder(APP), VOLUME), write=True, size=12 * BLOCK):
        assert holdings.held(APP) == first
    holdings.open()
    assert holdings.held(APP) == manifest
    assert whole(holdings) == manifest.digest


def test_what_cannot_be_read_is_not_taken_for_nothing(
    holdings: Holdings, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken(holdings, {0: b"one"})

    def broken(_: Path) -> list[Path]:
        raise OSError("Input/output error")

    monkeypatch.setattr(Path, "iterdir", broken)
    with pytest.raises(OSError, match="Input/output error"):
        holdings.all()


async def test_what_a_disk_forgets_is_found(holdings: Holdings) -> None:
    clock = ShiftedClock()
    scrub = Scrub(clock, holdings)
    assert not await scrub.work()
    manifest = taken(holdings, {0: b"one", 5: b"two"})
    assert not await scrub.work(), "it was read when it came"
    clock.advance(15 * 86_400)
    assert await scrub.work()
    assert not await scrub.work(), "it has been read"
    assert holdings.held(APP) == manifest
    with image_of(holdings.folder(APP), VOLUME).open("r+b") as file:
        file.seek(5 * BLOCK + 1000)
        file.write(b"?")
    assert not await scrub.work()
    clock.advance(15 * 86_400)
    assert await scrub.work()
    assert holdings.all() == {}
    assert not await scrub.work()
    # The next one comes whole.
    assert taken(holdings, {0: b"one", 5: b"two"}).digest == whole(holdings)
    assert not (holdings.folder(APP) / CHECKED).exists()
