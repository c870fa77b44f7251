"""A folder of models, one file each: what the agent knows even after a power cut.

A file is whole or not there. One that cannot be read is put aside and reported, and the others are loaded:
one bad record never stops the rest. Reads come from memory.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Generic, TypeVar

import structlog
from contracts.model import Model
from pydantic import ValidationError

M = TypeVar("M", bound=Model)

log = structlog.get_logger("node-agent.shelf")

BROKEN = "broken"
_SUFFIX = ".json"


def write_durably(path: Path, text: str, drafts: Path) -> None:
    """`drafts` is a folder on the same file system, outside of what anybody watches."""
    draft = drafts / path.name
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)


def write_alone(path: Path, text: str) -> None:
    """In a folder that has none beside it for drafts."""
    drafts = path.parent / "new"
    drafts.mkdir(exist_ok=True)
    write_durably(path, text, drafts)
    drafts.rmdir()


def write(path: Path, text: str, drafts: Path) -> None:
    """Whole or not at all, unless the power goes."""
    draft = drafts / path.name
    draft.write_text(text)
    draft.replace(path)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_aside(path: Path, reason: str) -> None:
    """Out of the way and still there to be looked at."""
    aside = path.parent.parent / BROKEN
    aside.mkdir(exist_ok=True)
    path.replace(aside / f"{path.parent.name}-{path.name}")
    log.error("a file could not be read and was put aside", file=str(path), reason=reason)


class Shelf(Generic[M]):
    def __init__(self, folder: Path, kind: type[M], *, durable: bool = True) -> None:
        """Not `durable`: what a power cut takes, somebody else still knows and says again."""
        self._folder = folder
        # Its own: shelves have the same keys, and one must not take away the other's draft.
        self._drafts = folder.parent / "drafts" / folder.name
        self._kind = kind
        self._write = write_durably if durable else write
        self._kept: dict[str, M] = {}
        self._writing: dict[str, asyncio.Lock] = {}

    def open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._drafts.mkdir(parents=True, exist_ok=True)
        self._kept = {}
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                self._kept[path.name.removesuffix(_SUFFIX)] = self._kind.model_validate_json(path.read_text())
            except (ValidationError, UnicodeDecodeError) as error:
                put_aside(path, str(error))

    def get(self, key: str) -> M | None:
        return self._kept.get(key)

    def __iter__(self) -> Iterator[tuple[str, M]]:
        return iter(tuple(self._kept.items()))

    def __len__(self) -> int:
        return len(self._kept)

    async def put(self, key: str, value: M) -> None:
        """Readers see it at once; it is on disk when this returns. What could not be written is not kept, so
        that whoever says it again is heard."""
        before = self._kept.get(key)
        if before == value:
            return
        self._kept[key] = value
        async with self._writing.setdefault(key, asyncio.Lock()):
            text = value.model_dump_json(indent=1)
            try:
                await asyncio.to_thread(self._write, self._path(key), text, self._drafts)
            except OSError:
                if self._kept.get(key) is value:
                    self._take_back(key, before)
                raise

    def _take_back(self, key: str, before: M | None) -> None:
        if before is None:
            del self._kept[key]
        else:
            self._kept[key] = before

    async def remove(self, key: str) -> None:
        if self._kept.pop(key, None) is None:
            return
        async with self._writing.setdefault(key, asyncio.Lock()):
            self._path(key).unlink(missing_ok=True)
        if key not in self._kept:
            self._writing.pop(key, None)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"
