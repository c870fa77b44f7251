"""Zip archives: read as tars are, and every trick of theirs."""

import io
import stat
import struct
import zipfile
from collections.abc import Callable

import pytest
from contracts.archive import ArchiveLimits, entries, inspect
from contracts.errors import BerthError, InvalidInput, TooLarge

LIMITS = ArchiveLimits(files=100, bytes=100_000)


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, body in members:
            archive.writestr(name, body, compress_type=method)
    return made.getvalue()


def unix(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_is_read_as_a_tar(method: int) -> None:
    archive = io.BytesIO(
        zipped(
            ("shop/", b""),
            ("shop/app.py", b"print(1)\n"),
            (unix("shop/run", stat.S_IFREG | 0o755), b"#!/bin/sh\n"),
            ("shop\\windows.txt", b"w"),
            ("__MACOSX/shop/._app.py", b"x"),
            ("empty", b""),
            method=method,
        )
    )
    listing = inspect(archive, LIMITS)
    assert listing.names == ("shop/app.py", "shop/run", "shop/windows.txt", "empty")
    assert listing.bytes == 9 + 10 + 1
    found = {e.name: (e.info.mode, e.data.read()) for e in entries(archive, LIMITS) if e.data}
    assert found["shop/app.py"][1] == b"print(1)\n"
    assert found["shop/run"][0] & 0o100
    assert not found["shop/app.py"][0] & 0o100
    assert found["empty"][1] == b""


def lying(archive: bytes, size: int) -> bytes:
    """The list and the header both say that the first file has `size` bytes."""
    data = bytearray(archive)
    listed = data.rindex(b"PK\x01\x02")
    struct.pack_into("<L", data, 22, size)
    struct.pack_into("<L", data, listed + 24, size)
    return bytes(data)


def many(count: int) -> bytes:
    return zipped(*((f"f{n}", b"") for n in range(count)), method=zipfile.ZIP_STORED)


def flagged(archive: bytes, bit: int) -> bytes:
    data = bytearray(archive)
    data[6] |= bit
    data[data.rindex(b"PK\x01\x02") + 8] |= bit
    return bytes(data)


def overlapping() -> bytes:
    """The list names one packed file a hundred times."""
    one = zipped(("f000", b"0" * 900))
    begins = one.rindex(b"PK\x01\x02")
    ends = one.rindex(b"PK\x05\x06")
    listed = one[begins:ends]
    named = b"".join(listed.replace(b"f000", f"f{n:03}".encode()) for n in range(100))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 100, 100, len(named), begins, 0)
    return one[:begins] + named + end


HOSTILE: dict[str, Callable[[], bytes]] = {
    "climbs": lambda: zipped(("../evil", b"x")),
    "climbs in the middle": lambda: zipped(("a/../../evil", b"x")),
    "climbs with backslashes": lambda: zipped(("..\\..\\evil", b"x")),
    "absolute": lambda: zipped(("/etc/passwd", b"x")),
    "absolute with backslashes": lambda: zipped(("\\etc\\passwd", b"x")),
    "symbolic link": lambda: zipped((unix("a", stat.S_IFLNK | 0o777), b"/etc/passwd")),
    "device": lambda: zipped((unix("a", stat.S_IFCHR | 0o666), b"")),
    "pipe": lambda: zipped((unix("a", stat.S_IFIFO | 0o666), b"")),
    "socket": lambda: zipped((unix("a", stat.S_IFSOCK | 0o666), b"")),
    "beneath a file": lambda: zipped(("a", b"x"), ("a/b", b"x")),
    "twice": lambda: zipped(("a", b"x"), ("./a", b"y")),
    "control characters": lambda: zipped(("a\nb", b"x")),
    "long name": lambda: zipped(("d/" * 3000 + "a", b"x")),
    "too large": lambda: zipped(("a", b"0" * 100_001)),
    "too large together": lambda: zipped(*((f"f{n}", b"0" * 2000) for n in range(60))),
    "longer than it says": lambda: lying(zipped(("a", b"0" * 50_000_000)), 10),
    "shorter than it says": lambda: lying(zipped(("a", b"0" * 10)), 5000),
    "not what the sum says": lambda: zipped(("a", b"hello"), method=zipfile.ZIP_STORED).replace(
        b"hello", b"jello"
    ),
    "too many entries": lambda: many(101),
    "far too many entries": lambda: many(40_000),
    "encrypted": lambda: flagged(zipped(("a", b"x")), 1),
    "another compression": lambda: zipped(("a", b"x"), method=zipfile.ZIP_LZMA),
    "one file under many names": overlapping,
    "cut off": lambda: zipped(("a", b"x" * 1000))[:-30],
    "nothing but its beginning": lambda: b"PK\x03\x04",
    "only what macOS adds": lambda: zipped(("__MACOSX/a", b"x")),
    "another name in its header": lambda: zipped(("aaa", b"x")).replace(b"aaa", b"bbb", 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refuses(name: str) -> None:
    with pytest.raises(BerthError) as refused:
        inspect(io.BytesIO(HOSTILE[name]()), LIMITS)
    assert isinstance(refused.value, InvalidInput | TooLarge)


def test_what_is_too_long_is_never_unpacked() -> None:
    archive = io.BytesIO(lying(zipped(("a", b"0" * 50_000_000)), 10))
    for entry in entries(archive, LIMITS):
        assert entry.data is not None
        with pytest.raises(InvalidInput, match="not a whole zip"):
            entry.data.read()
