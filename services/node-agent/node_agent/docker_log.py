"""The files in which Docker keeps what a container says, read as they grow. Blocking, and cheap where there
is nothing new.

Not through the engine: it takes more than all the rest for each line. Its files are renamed when they are
full (`-json.log`, `.1`, `.2`, the oldest last), and one that is open is read to its end whatever it is called
by then.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from contracts.lines import LINE_BYTES, Line

_ROTATED = 9
_CUT = " … (the line is longer)"
# Who is further behind goes on with the newest of it.
_BEHIND_BYTES = 4 * 1024 * 1024
_RESUME_BYTES = 256 * 1024
# No clock is there yet, and it still fits where it is kept.
_LATEST = 2**63
# A line of the largest piece an engine makes of one, in JSON; longer without an end, it is none.
_LONGEST = 1024 * 1024


class DockerLog:
    def __init__(self, path: Path, after: int) -> None:
        """Lines later than the moment `after`, in nanoseconds."""
        self._path = path
        self._after = after
        self._file: BinaryIO | None = None
        self._rest = b""
        # The parts of a line that is too long for one of the engine's.
        self._begun: Line | None = None

    def read(self, most: int) -> list[Line]:
        if self._file is None and not self._open_oldest():
            return []
        if self._idle():
            return []
        found = list(self._skipped())
        taken = 0
        while taken < most:
            data = self._read(most - taken)
            if data:
                taken += len(data)
                found.extend(self._lines(data))
            elif not self._next():
                break
        return found

    def rest(self) -> list[Line]:
        """What has no end yet, of one that says no more."""
        begun, self._begun = self._begun, None
        return [begun] if begun is not None else []

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # --- the files ---------------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        """The oldest first."""
        rotated = [self._path.with_name(f"{self._path.name}.{n}") for n in range(_ROTATED, 0, -1)]
        return [*(path for path in rotated if path.exists()), self._path]

    def _open_oldest(self) -> bool:
        for path in self._files():
            with suppress(FileNotFoundError):
                if path != self._path and path.stat().st_mtime_ns <= self._after:
                    continue
                self._open(path)
                return True
        return False

    def _open(self, path: Path) -> None:
        self.close()
        self._file = path.open("rb", buffering=0)
        self._rest = b""

    def _idle(self) -> bool:
        assert self._file is not None
        ours = os.fstat(self._file.fileno())
        if ours.st_size < self._file.tell():
            # Somebody has emptied it.
            self._file.seek(0)
        if ours.st_size > self._file.tell():
            return False
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            # Between two files, or gone with its container.
            return True
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _read(self, most: int) -> bytes:
        assert self._file is not None
        return self._file.read(most) or b""

    def _newer(self) -> list[Path]:
        """Those behind the one that is open; all of them where that is none any more."""
        assert self._file is not None
        ours, found = os.fstat(self._file.fileno()), []
        for path in reversed(self._files()):
            with suppress(FileNotFoundError):
                there = path.stat()
                if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                    break
                found.append(path)
        return found[::-1]

    def _next(self) -> bool:
        """On to the next file, where the one that is open is not the one that is written to."""
        assert self._file is not None
        for path in self._newer():
            # It may have been written to until it was renamed, which is before the next one was there.
            if data := self._read(_RESUME_BYTES):
                self._file.seek(-len(data), os.SEEK_CUR)
                return True
            with suppress(FileNotFoundError):
                self._open(path)
                return True
        return False

    def _skipped(self) -> Iterator[Line]:
        """Who writes faster than is read on loses what lies between, and the newest goes on."""
        assert self._file is not None
        ours = os.fstat(self._file.fileno()).st_size - self._file.tell()
        newer = []
        for path in self._newer():
            with suppress(FileNotFoundError):
                newer.append((path, path.stat().st_size))
        behind = ours + sum(size for _, size in newer)
        if behind <= _BEHIND_BYTES:
            return
        if newer:
            with suppress(FileNotFoundError):
                self._open(newer[-1][0])
        self._file.seek(-min(_RESUME_BYTES, os.fstat(self._file.fileno()).st_size), os.SEEK_END)
        lost = behind - _RESUME_BYTES
        # What the place is in the midst of is no whole line.
        self._rest, self._begun = b"", None
        with suppress(ValueError):
            data = self._read(_LONGEST)
            start = data.index(b"\n") + 1
            self._file.seek(start - len(data), os.SEEK_CUR)
            first = next(iter(self._parsed(data[start:].split(b"\n", 1)[0])), None)
            at = 0 if first is None else first.at
            yield Line(at, "platform", f"(some {lost // 1024} KB were written too fast, and are not kept)")

    # --- what is in them ---------------------------------------------------------------------------

    def _lines(self, data: bytes) -> Iterator[Line]:
        *whole, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            self._rest = b""
        for text in whole:
            for part in self._parsed(text):
                yield from self._joined(part)

    def _parsed(self, text: bytes) -> Iterator[Line]:
        """None of what cannot be read: a machine that failed leaves the like behind."""
        with suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
            entry: dict[str, Any] = orjson.loads(text)
            at = moment(entry["time"])
            if self._after < at < _LATEST:
                # From the first one on all are: a clock may be set back.
                self._after = -1
                yield Line(at, "stderr" if entry["stream"] == "stderr" else "stdout", entry["log"])

    def _joined(self, part: Line) -> Iterator[Line]:
        """A line the engine took apart has one moment, and no end of line before its last part."""
        begun = self._begun
        if begun is not None and (begun.at, begun.stream) != (part.at, part.stream):
            yield begun
            begun = None
        text = part.text if begun is None else begun.text + part.text
        if len(text) > LINE_BYTES:
            text = text[: LINE_BYTES - len(_CUT)] + _CUT + ("\n" if text.endswith("\n") else "")
        if text.endswith("\n"):
            self._begun = None
            yield Line(part.at, part.stream, text.rstrip("\r\n"))
        else:
            self._begun = Line(part.at, part.stream, text)


def moment(text: str) -> int:
    """`2026-01-02T03:04:05.123456789Z` in nanoseconds; the engine leaves out zeros at the end."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or 0)
