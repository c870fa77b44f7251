"""What a source archive may hold. PURE: reads the file object it is given, and unpacks nothing.

Every entry lies inside the archive's root, is a file or a directory (a link only where the limits allow it,
and then one that stays inside), and the whole is within its limits before a byte of it is used. The gateway
asks `inspect` at upload; the builder walks the same `entries` into a build's context.
"""

import gzip
import posixpath
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, Self, cast

from contracts import zip_archive
from contracts.errors import BerthError, InvalidInput, TooLarge

_LONGEST_NAME = 4096
_LARGEST_HEADER = 1024 * 1024
_CHUNK = 64 * 1024
_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, RecursionError)
_NOT_WHOLE = (
    "the source is not a whole tar.gz or zip archive; make it with `tar czf app.tar.gz .` and send it again"
)
_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_KINDS = {
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """`files` counts every entry, directories too; `bytes` is the size unpacked."""

    files: int
    bytes: int
    # Symbolic links that stay inside: a Git repository may have them, an upload may not.
    links: bool = False


@dataclass(frozen=True, slots=True)
class ArchiveListing:
    """`names` are the files and links, relative to the root, in the order of the archive."""

    files: int
    bytes: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """`name` is clean: relative, without `.` or `..`. `data` is there for a file, until the next entry."""

    name: str
    info: tarfile.TarInfo
    data: IO[bytes] | None


def inspect(file: BinaryIO, limits: ArchiveLimits) -> ArchiveListing:
    names, size = [], 0
    for entry in entries(file, limits):
        if not entry.info.isdir():
            names.append(entry.name)
            size += entry.info.size
        try:
            while entry.data is not None and entry.data.read(_CHUNK):
                continue
        except _BROKEN as error:
            raise InvalidInput(_NOT_WHOLE, reason=str(error)) from error
    return ArchiveListing(len(names), size, tuple(names))


def entries(file: BinaryIO, limits: ArchiveLimits) -> Iterator[Entry]:
    """Each entry in turn, checked, of a zip or a tar that may be gzipped; the root itself is left out."""
    file.seek(0)
    magic = file.read(len(zip_archive.MAGIC))
    file.seek(0)
    found = zip_archive.members if magic == zip_archive.MAGIC else _members
    seen: dict[str, bool] = {}
    size = 0
    for info, data in found(file, limits):
        name = _checked_name(info)
        if not name:
            continue
        _check_kind(name, info, limits)
        _check_place(name, info, seen)
        size += info.size
        if len(seen) > limits.files:
            raise TooLarge(
                f"the archive has more than {limits.files} entries; leave out what the build does not need",
                limit=limits.files,
            )
        if size > limits.bytes:
            raise TooLarge(
                f"the archive unpacks to more than {limits.bytes} bytes (at {shown(name)!r}); leave out what "
                "the build does not need",
                entry=shown(name),
                limit=limits.bytes,
            )
        yield Entry(name, info, data)
    if not seen:
        raise InvalidInput("the archive is empty; make it with `tar czf app.tar.gz .` in the app's folder")


def _members(file: BinaryIO, limits: ArchiveLimits) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    gzipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    # What names and headers may add to the contents; without this bound they could be a bomb themselves.
    budget = limits.bytes + limits.files * 2048 + 16 * _LARGEST_HEADER
    stream = _Metered(cast(IO[bytes], gzip.GzipFile(fileobj=file, mode="rb")) if gzipped else file, budget)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=_Header) as tar:
            while (info := tar.next()) is not None:
                # The module remembers every member it has seen; a stream never asks for them again.
                tar.members.clear()  # type: ignore[attr-defined]
                yield info, tar.extractfile(info) if info.isfile() else None
    except BerthError:
        raise
    except _BROKEN as error:
        raise InvalidInput(_NOT_WHOLE, reason=str(error)) from error


def shown(name: str) -> str:
    """A name as it may stand in a message, whatever bytes it was made of."""
    return name.encode("utf-8", "backslashreplace").decode()[:200]


class _Header(tarfile.TarInfo):
    """Extended headers are read whole into memory: their size is checked before."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if header.type in _EXTENSIONS and header.size > _LARGEST_HEADER:
            raise InvalidInput("an entry of the archive has a name or attributes of more than 1 MiB")
        return header


class _Metered:
    def __init__(self, source: IO[bytes], budget: int) -> None:
        self._source = source
        self._left = budget

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise TooLarge(
                "the archive unpacks to more than its limit; leave out what the build does not need"
            )
        return data


def _checked_name(info: tarfile.TarInfo) -> str:
    name = info.name
    if name.startswith("/"):
        raise _refused(name, "has an absolute path; pack with relative paths")
    if ".." in name.split("/"):
        raise _refused(name, "leads out of the archive with '..'; pack from the app's own folder")
    if len(name) > _LONGEST_NAME or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise _refused(name, "has a name that is too long or has control characters; rename it")
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _check_kind(name: str, info: tarfile.TarInfo, limits: ArchiveLimits) -> None:
    if info.issym() and limits.links:
        if not _stays_inside(name, info.linkname):
            raise _refused(name, f"links to {shown(info.linkname)!r}, outside of the source; remove the link")
        return
    if info.issparse():
        raise _refused(name, "is a sparse file; pack it as a plain file")
    if not (info.isfile() or info.isdir()):
        kind = _KINDS.get(info.type, "of an unknown kind")
        raise _refused(name, f"is {kind}; only files and folders may be in it")
    if info.size < 0:
        raise _refused(name, "has a negative size; pack it anew")


def _stays_inside(name: str, target: str) -> bool:
    """A link may climb only at the start of its target: `a/..` need not lead back when `a` is a link."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    return not target.startswith("/") and ".." not in parts[climbs:] and climbs <= name.count("/")


def _check_place(name: str, info: tarfile.TarInfo, seen: dict[str, bool]) -> None:
    """`seen` says of each name whether it is a folder: nothing may lie beneath a file or a link."""
    folder = info.isdir()
    if name in seen and not (folder and seen[name]):
        raise _refused(name, "is in it twice; pack it anew")
    parent = posixpath.dirname(name)
    while parent:
        if not seen.setdefault(parent, True):
            raise _refused(name, f"lies beneath {shown(parent)!r}, which is not a folder; pack it anew")
        parent = posixpath.dirname(parent)
    seen[name] = folder


def _refused(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"the archive's entry {shown(name)!r} {why}", entry=shown(name))
