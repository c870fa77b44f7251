"""A zip archive, read as the tar entries it stands for. PURE: reads the file object it is given.

The list at its end is the sender's claim. It is bounded before it is read, everything it names is judged as a
tar's entries are, and a file is only taken for what it claims to be once all of it was read and summed up.
"""

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import IO, BinaryIO, Protocol, cast

from contracts.errors import BerthError, InvalidInput, TooLarge

MAGIC = b"PK\x03\x04"
_UNIX = 3
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What an entry of the list takes, with room for long names and what programs add.
_LISTED = 400
_LEAST = 1024 * 1024
# What macOS adds to every archive it makes.
_MACS = "__MACOSX/"
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError),
    *(ValueError, IndexError, OverflowError, RuntimeError),
)


class Limits(Protocol):
    @property
    def files(self) -> int: ...


def members(file: BinaryIO, limits: Limits) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Each entry as a tar would have it. Its data is there until the next one."""
    most = limits.files
    try:
        with zipfile.ZipFile(cast(IO[bytes], _Careful(file, max(_LEAST, most * _LISTED)))) as archive:
            found = archive.infolist()
            if len(found) > most:
                raise TooLarge(
                    f"the archive has more than {most} entries; leave out what the build does not need",
                    limit=most,
                )
            for info in found:
                entry = _as_tar(info)
                if entry.name.startswith(_MACS):
                    continue
                if not entry.isfile():
                    yield entry, None
                    continue
                with archive.open(info) as data:
                    yield entry, cast(IO[bytes], _Whole(data, entry))
    except BerthError:
        raise
    except _BROKEN as error:
        raise _broken(error) from error


def _as_tar(info: zipfile.ZipInfo) -> tarfile.TarInfo:
    # Some programs of Windows write its own separator.
    entry = tarfile.TarInfo(info.filename.replace("\\", "/"))
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    kind = stat.S_IFMT(mode)
    if info.flag_bits & _ENCRYPTED:
        raise _refused(info, "is encrypted; pack it without a password")
    if info.compress_type not in _METHODS:
        raise _refused(info, "is packed in an unusual way; use plain zip compression")
    if kind == stat.S_IFLNK:
        raise _refused(info, "is a symbolic link; only files and folders may be in it")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _refused(info, "is a device or pipe; only files and folders may be in it")
    entry.type = tarfile.DIRTYPE if entry.name.endswith("/") else tarfile.REGTYPE
    entry.size = 0 if entry.isdir() else info.file_size
    entry.mode = stat.S_IMODE(mode) or (0o755 if entry.isdir() else 0o644)
    entry.mtime = _time(info)
    return entry


def _time(info: zipfile.ZipInfo) -> float:
    try:
        return datetime(*info.date_time, tzinfo=UTC).timestamp()
    except ValueError:
        return 0


def _refused(info: zipfile.ZipInfo, why: str) -> InvalidInput:
    name = info.filename.encode("utf-8", "backslashreplace").decode()[:200]
    return InvalidInput(f"the archive's entry {name!r} {why}", entry=name)


class _Careful:
    """The list is read in one piece: no more of it than `largest` at once."""

    def __init__(self, file: BinaryIO, largest: int) -> None:
        self._file = file
        self._largest = largest
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(min(size, self._largest + 1) if size >= 0 else self._largest + 1)
        if len(data) > self._largest:
            raise TooLarge(
                "the archive's list of entries is too long; leave out what the build does not need"
            )
        return data


class _Whole:
    """Ends exactly where the list says; the sum over it is checked there."""

    def __init__(self, data: IO[bytes], entry: tarfile.TarInfo) -> None:
        self._data = data
        self._left = entry.size
        self._name = entry.name

    def read(self, size: int = -1) -> bytes:
        # Never without a bound: what is packed may be longer than it claims.
        size = min(size, self._left + 1) if size >= 0 else self._left + 1
        try:
            chunk = self._data.read(size)
        except _BROKEN as error:
            raise _broken(error) from error
        self._left -= len(chunk)
        if not chunk and size and self._left:
            raise _broken(EOFError(f"{self._name[:200]!r} is shorter than the list says"))
        return chunk


def _broken(error: Exception) -> InvalidInput:
    return InvalidInput(
        "the source is not a whole zip archive; make it anew and send it again", reason=str(error)
    )
