"""Copies of other nodes' volumes that are kept here: each complete, of one moment, or not there.

A copy is brought up to date beside itself: the blocks that differ are gathered in a draft, and only when all
of them are there, and what is on the disk has been read back and found right, they are put into the copy.
Whatever the agent is killed in, the copy that was complete stays, or the next start finishes what was
decided. Blocking.
"""

import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import structlog
from contracts.copies import BLOCK, DIGEST, OfferedVolume, digest_of
from contracts.errors import ProviderFailed
from contracts.ids import AppId, CopyId, VolumeId
from contracts.model import Model, Moment
from pydantic import ValidationError

from node_agent.blocks import Image, digest
from node_agent.shelf import sync_folder, write_alone

log = structlog.get_logger("node-agent.holdings")

MANIFEST = "copy.json"
# Its time is when all of the copy was read last.
CHECKED = "checked"


class Manifest(Model):
    """What a copy is; a folder with one is complete."""

    id: CopyId
    # Of a draft: the copy it changes; none: it is whole by itself.
    base: CopyId | None = None
    workload: AppId
    taken_at: Moment
    digest: str
    volumes: tuple[VolumeId, ...]


def read_manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.error(
            "the manifest of a copy cannot be read; it is no copy", folder=str(folder), error=str(error)
        )
        return None


def read_copy(folder: Path) -> Manifest | None:
    """One whose files somebody has taken away or cut is no copy either."""
    manifest = read_manifest(folder)
    if manifest is None:
        return None
    for volume in manifest.volumes:
        try:
            blocks = -(-image_of(folder, volume).stat().st_size // BLOCK)
            # While a larger one is put in its place the file grows first.
            whole = digests_of(folder, volume).stat().st_size <= blocks * DIGEST
        except FileNotFoundError:
            whole = False
        if not whole:
            log.error("a copy lacks files of a volume; it is no copy", folder=str(folder), volume=volume)
            return None
    return manifest


def image_of(folder: Path, volume: str) -> Path:
    return folder / f"{volume}.ext4"


def digests_of(folder: Path, volume: str) -> Path:
    return folder / f"{volume}.digests"


class Draft:
    """The next copy of a workload on its way: blocks, and what is known of all of them."""

    def __init__(self, folder: Path, base: Path, offered: Mapping[str, OfferedVolume]) -> None:
        self.folder, self._base = folder, base
        # A thread that was left behind must not write to what has been closed.
        self._guard = threading.Lock()
        self._closed = False
        self.offered = dict(offered)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in folder.glob("*.ext4"):
            if left.stem not in self.offered:
                left.unlink()
        self._images = {
            v.id: Image(image_of(folder, v.id), write=True, size=v.size) for v in self.offered.values()
        }
        below = read_copy(base)
        self._below = None if below is None else below.id
        self.here = {volume: self._found(volume) for volume in self.offered}

    def close(self) -> None:
        with self._guard:
            self._close()

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            for image in self._images.values():
                image.close()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._guard:
            if self._closed:
                raise ProviderFailed("the copy was given up")
            yield

    def _found(self, volume: str) -> bytearray:
        """Of each block, what is here of it: in the draft, where an earlier try has brought it, else
        below."""
        image, known = self._images[volume], digests_of(self._base, volume)
        found = image.of_zeros(0, image.blocks)
        if self._below is not None and known.exists():
            below = known.read_bytes()[: len(found)]
            found[: len(below)] = below
        for index in image.filled():
            found[index * DIGEST : (index + 1) * DIGEST] = digest(image.read(index))
        return found

    def put(self, volume: str, index: int, block: bytes) -> bytes:
        """Its digest."""
        found = digest(block)
        with self._open():
            self._images[volume].write(index, block)
            self.here[volume][index * DIGEST : (index + 1) * DIGEST] = found
        return found

    def verify(self, *, whole: bool) -> None:
        """Reads what is on the disk anew, and knows from then on what really is here. `whole`: also of what
        was here before, and not only of what has come."""
        with self._open():
            for volume, image in self._images.items():
                self._verify(volume, image, whole)

    def _verify(self, volume: str, image: Image, whole: bool) -> None:
        image.sync()
        here, there = self.here[volume], set(image.filled())
        for index in there:
            here[index * DIGEST : (index + 1) * DIGEST] = digest(image.read(index))
        below = image_of(self._base, volume)
        if whole and below.exists():
            with Image(below) as old:
                found = bytearray(old.digests(0, image.blocks))
            for index in range(min(image.blocks, len(found) // DIGEST)):
                if index not in there:
                    here[index * DIGEST : (index + 1) * DIGEST] = found[index * DIGEST : (index + 1) * DIGEST]

    def digest(self) -> str:
        return digest_of({volume: bytes(here) for volume, here in self.here.items()})

    def commit(self, manifest: Manifest) -> None:
        """From here on it is the copy, whatever happens."""
        with self._open():
            for volume in self.offered:
                self._images[volume].sync()
                _write(digests_of(self.folder, volume), bytes(self.here[volume]))
            self._close()
            _write_manifest(self.folder, manifest.model_copy(update={"base": self._below}))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    write_alone(folder / MANIFEST, manifest.model_dump_json(indent=1))


class Holdings:
    def __init__(self, folder: Path) -> None:
        """Beside the volumes themselves, on the same file system."""
        self._copies = folder / "copies"
        self._drafts = folder / "drafts"
        # Of threads: one that nobody waits for any more may still be at work.
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)

    def open(self) -> None:
        """What an agent that was killed had decided is done."""
        if self._drafts.is_dir():
            for draft in self._drafts.iterdir():
                try:
                    self.finish(draft.name)
                except ProviderFailed as error:
                    log.error("a draft is of no use", workload=draft.name, why=error.message)
                except OSError as error:
                    # The disk may be full. It is tried again when the copy is asked for.
                    log.error("a draft is not put in its place", workload=draft.name, why=str(error))

    @contextmanager
    def alone(self, workload: str) -> Iterator[None]:
        with self._locks[workload]:
            yield

    def finish(self, workload: str) -> Manifest | None:
        """The copy that is here, and first what was committed and is not yet put into it."""
        with self.alone(workload):
            if read_manifest(self._drafts / workload) is not None:
                return self.apply(workload)
            return self.held(workload)

    def folder(self, workload: str) -> Path:
        return self._copies / workload

    def held(self, workload: str) -> Manifest | None:
        return read_copy(self.folder(workload))

    def all(self) -> dict[str, Manifest]:
        """Raises OSError where it cannot be read what there is: that is not the same as nothing."""
        found: dict[str, Manifest] = {}
        # Drafts first: one that is put in its place meanwhile is found there.
        for folder, read in ((self._drafts, read_manifest), (self._copies, read_copy)):
            for one in folder.iterdir() if folder.is_dir() else ():
                if (manifest := read(one)) is not None:
                    found[one.name] = manifest
        return found

    def begin(self, workload: str, offered: Mapping[str, OfferedVolume]) -> Draft:
        with self.alone(workload):
            self.finish(workload)
            return Draft(self._drafts / workload, self.folder(workload), offered)

    def apply(self, workload: str) -> Manifest:
        """Makes a committed draft the copy; again, where that was cut off."""
        with self.alone(workload):
            return self._apply(workload)

    def _apply(self, workload: str) -> Manifest:
        draft, copy = self._drafts / workload, self.folder(workload)
        manifest = read_manifest(draft)
        if manifest is None:
            raise ProviderFailed("there is no complete draft of a copy")
        below = read_copy(copy)
        if manifest.base is not None and (below is None or below.id not in (manifest.base, manifest.id)):
            (draft / MANIFEST).unlink()
            shutil.rmtree(draft)
            raise ProviderFailed("the copy this one changes is gone; it begins again")
        manifest = manifest.model_copy(update={"base": None})
        if below is None:
            # Nothing there, or what never was a copy; and no copy is in between.
            shutil.rmtree(copy, ignore_errors=True)
            self._copies.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft.rename(copy)
            sync_folder(self._copies)
            return manifest
        for volume in manifest.volumes:
            self._patch(draft, copy, volume)
        for volume in manifest.volumes:
            _write(digests_of(copy, volume), digests_of(draft, volume).read_bytes())
        _write_manifest(copy, manifest)
        for left in copy.glob("*.ext4"):
            if left.stem not in manifest.volumes:
                left.unlink()
                digests_of(copy, left.stem).unlink(missing_ok=True)
        # Its manifest first: without it nothing of it counts.
        (draft / MANIFEST).unlink()
        shutil.rmtree(draft)
        return manifest

    @staticmethod
    def _patch(draft: Path, copy: Path, volume: str) -> None:
        target = image_of(copy, volume)
        with (
            Image(image_of(draft, volume)) as new,
            Image(target, write=True, size=new.size) as whole,
        ):
            for index in new.filled():
                whole.write(index, new.read(index))
            whole.sync()

    def disown(self, workload: str, copy: str) -> None:
        """What is on the disk is not what came: it is a copy no more, and the next one comes whole. Not so if
        there is another one by now."""
        with self.alone(workload):
            held = self.finish(workload)
            if held is not None and held.id == copy:
                (self.folder(workload) / MANIFEST).unlink()
                log.error("a copy is not what came; it is no copy", workload=workload, copy=copy)

    def drop(self, workload: str) -> None:
        """The copy and whatever was on its way: nobody wants it any more."""
        with self.alone(workload):
            for folder in (self._drafts / workload, self.folder(workload)):
                (folder / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)
        log.info("copy dropped", workload=workload)
