"""The files of volumes block by block: what is in them, by digest, and only where they have anything.
Blocking.

A file is sparse where nothing was ever written, and stays so: a block of zeros is a hole, and costs neither
reading, sending nor room. Used by `giving` and `holdings`.
"""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from contracts.copies import BLOCK, DIGEST

_ZEROS = bytes(BLOCK)


def digest(block: bytes) -> bytes:
    return hashlib.blake2b(block, digest_size=DIGEST).digest()


def zero_digest(length: int = BLOCK) -> bytes:
    return _ZERO if length == BLOCK else digest(_ZEROS[:length])


_ZERO = digest(_ZEROS)


class Image:
    """A file of blocks, open."""

    def __init__(self, path: Path, *, write: bool = False, size: int | None = None) -> None:
        """`size`: it is made, or brought to this size."""
        flags = os.O_RDWR if write else os.O_RDONLY
        self._file = os.open(path, flags | (os.O_CREAT if size is not None else 0), 0o600)
        if size is not None:
            os.ftruncate(self._file, size)
        self.size = os.fstat(self._file).st_size
        self.blocks = -(-self.size // BLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)

    def length(self, index: int) -> int:
        return min(BLOCK, self.size - index * BLOCK)

    def read(self, index: int) -> bytes:
        wanted, parts, at = self.length(index), [], index * BLOCK
        while wanted:
            part = os.pread(self._file, wanted, at)
            if not part:
                raise OSError(errno.EIO, "the file has become shorter")
            parts.append(part)
            wanted -= len(part)
            at += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, index: int, block: bytes) -> None:
        done = 0
        while done < len(block):
            done += os.pwrite(self._file, memoryview(block)[done:], index * BLOCK + done)

    def sync(self) -> None:
        os.fsync(self._file)

    def filled(self, first: int = 0, end: int | None = None) -> Iterator[int]:
        """The blocks in which something was ever written."""
        end = self.blocks if end is None else min(end, self.blocks)
        at, last = first * BLOCK, end * BLOCK
        while at < min(last, self.size):
            try:
                data = os.lseek(self._file, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            index = data // BLOCK
            if index >= end:
                return
            hole = os.lseek(self._file, data, os.SEEK_HOLE)
            until = min(-(-hole // BLOCK), end)
            yield from range(index, until)
            at = until * BLOCK

    def digests(self, first: int = 0, end: int | None = None) -> bytes:
        """Of each block, joined."""
        end = self.blocks if end is None else min(end, self.blocks)
        found = self.of_zeros(first, end)
        for index in self.filled(first, end):
            place = (index - first) * DIGEST
            found[place : place + DIGEST] = digest(self.read(index))
        return bytes(found)

    def of_zeros(self, first: int, end: int) -> bytearray:
        found = bytearray(_ZERO * (end - first))
        if end == self.blocks and end > first and self.length(end - 1) < BLOCK:
            found[-DIGEST:] = zero_digest(self.length(end - 1))
        return found


def differing(there: bytes, here: bytes) -> list[int]:
    """The blocks whose digests are not the same; what one list lacks differs."""
    if there == here:
        return []
    return [
        at // DIGEST
        for at in range(0, len(there), DIGEST)
        if there[at : at + DIGEST] != here[at : at + DIGEST]
    ]
