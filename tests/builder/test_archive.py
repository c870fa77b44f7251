import gzip
import io
import tarfile

import pytest
from contracts.archive import ArchiveLimits, entries, inspect
from contracts.errors import BerthError, InvalidInput, TooLarge

from tests.builder.archives import packed, tar

UPLOAD = ArchiveLimits(files=100, bytes=10_000)
GIT = ArchiveLimits(files=100, bytes=10_000, links=True)

FILE, FOLDER, SYMBOLIC, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def test_lists_files_with_clean_names() -> None:
    archive = tar(
        [
            ("./", FOLDER, b""),
            ("./app.py", FILE, b"12345"),
            ("./lib//x/./y.py", FILE, b"1"),
            ("empty/", FOLDER, b""),
        ]
    )
    listing = inspect(io.BytesIO(archive), UPLOAD)
    assert listing.names == ("app.py", "lib/x/y.py")
    assert (listing.files, listing.bytes) == (2, 6)


def test_a_plain_tar_is_read_too() -> None:
    assert inspect(io.BytesIO(packed({"a": "1"}, compress=False)), UPLOAD).names == ("a",)


def test_entries_give_the_contents() -> None:
    archive = io.BytesIO(packed({"a": "one", "b": "two"}))
    assert {e.name: e.data.read() for e in entries(archive, UPLOAD) if e.data} == {"a": b"one", "b": b"two"}


Members = list[tuple[str, bytes, bytes | str]]

HOSTILE: dict[str, Members] = {
    "climbs": [("../evil", FILE, b"x")],
    "climbs in the middle": [("a/../../evil", FILE, b"x")],
    "absolute": [("/etc/passwd", FILE, b"x")],
    "character device": [("null", tarfile.CHRTYPE, b"")],
    "block device": [("sda", tarfile.BLKTYPE, b"")],
    "pipe": [("pipe", tarfile.FIFOTYPE, b"")],
    "contiguous kind unknown": [("odd", b"Z", b"")],
    "link outside": [("a", SYMBOLIC, "/etc/passwd")],
    "link climbs": [("d/a", SYMBOLIC, "../../x")],
    "link climbs through another link": [("d", SYMBOLIC, "."), ("e", SYMBOLIC, "d/d/d/../../..")],
    "hard link": [("a", FILE, b"x"), ("b", HARD, "a")],
    "hard link outside": [("b", HARD, "/etc/shadow")],
    "beneath a link": [("a", SYMBOLIC, "b"), ("a/evil", FILE, b"x")],
    "a folder becomes a link": [("a/x", FILE, b"x"), ("a", SYMBOLIC, "b")],
    "beneath a file": [("a", FILE, b"x"), ("a/b", FILE, b"x")],
    "twice": [("a", FILE, b"x"), ("./a", FILE, b"y")],
    "control characters": [("a\nb", FILE, b"x")],
    "long name": [("d/" * 3000 + "a", FILE, b"x")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("limits", [UPLOAD, GIT], ids=["upload", "git"])
def test_refuses_and_names_the_entry(limits: ArchiveLimits, members: Members) -> None:
    with pytest.raises(InvalidInput) as refused:
        inspect(io.BytesIO(tar(members)), limits)
    assert refused.value.details["entry"]


def test_links_that_stay_inside_are_for_git_alone() -> None:
    members: Members = [
        ("lib/a.so.1", FILE, b"x"),
        ("lib/a.so", SYMBOLIC, "a.so.1"),
        ("cur", SYMBOLIC, "./lib"),
        ("lib/up", SYMBOLIC, ".."),
    ]
    assert inspect(io.BytesIO(tar(members)), GIT).names == ("lib/a.so.1", "lib/a.so", "cur", "lib/up")
    with pytest.raises(InvalidInput, match=r"lib/a\.so"):
        inspect(io.BytesIO(tar(members)), UPLOAD)


TOO_LARGE = {
    "one file": packed({"a": bytes(10_001)}),
    "together": packed({"a": bytes(6_000), "b": bytes(6_000)}),
    "entries": packed({f"f{i}": "" for i in range(101)}),
    "folders": tar((f"d{i}/", FOLDER, b"") for i in range(101)),
    "implied folders": packed({"/".join("d" * 101) + "/f": ""}),
    # The same folder again and again counts once as an entry, and still costs its header.
    "repeated": tar(("d/", FOLDER, b"") for _ in range(40_000)),
}


@pytest.mark.parametrize("archive", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_too_large(archive: bytes) -> None:
    with pytest.raises(TooLarge):
        inspect(io.BytesIO(archive), UPLOAD)


def test_a_bomb_is_refused_by_its_header_before_it_is_unpacked() -> None:
    header = tarfile.TarInfo("bomb")
    header.size = 10**12
    with pytest.raises(TooLarge, match="bomb"):
        inspect(io.BytesIO(gzip.compress(header.tobuf() + bytes(2048))), UPLOAD)


def _extended(kind: bytes, size: int) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    return header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)


def _pax(records: dict[str, str], name: str = "a") -> bytes:
    info = tarfile.TarInfo(name)
    info.pax_headers = records
    return info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


BROKEN = {
    "no archive": b"PK\x03\x04 this is a zip",
    "nothing": b"",
    "empty archive": tar([]),
    "cut gzip": packed({"a": bytes(range(256)) * 20})[:-40],
    "cut tar": packed({"a": bytes(5_000)}, compress=False)[:2_000],
    "gzip of nothing": gzip.compress(b""),
    "gzip of noise": gzip.compress(bytes(range(256)) * 8),
    "huge extended header": _extended(tarfile.XHDTYPE, 2**30),
    "huge long name": _extended(tarfile.GNUTYPE_LONGNAME, 2**30),
    "endless headers": b"".join(_extended(tarfile.XGLTYPE, 0)[:512] for _ in range(5_000)),
    "negative size by attribute": _pax({"size": "-4096"}),
    "climbs by attribute": _pax({"path": "../../evil"}),
    "sparse by attribute": _pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": "1000000000000"}),
}


@pytest.mark.parametrize("archive", BROKEN.values(), ids=BROKEN.keys())
def test_broken(archive: bytes) -> None:
    with pytest.raises((InvalidInput, TooLarge)) as refused:
        inspect(io.BytesIO(archive), UPLOAD)
    assert isinstance(refused.value, BerthError)
    assert refused.value.message


def test_a_name_that_is_no_text_can_still_be_shown() -> None:
    raw = packed({"caf\xe9/../x": "1"}, compress=False).replace("caf\xe9".encode(), b"ca\xff\xfe\x01")
    with pytest.raises(InvalidInput) as refused:
        inspect(io.BytesIO(raw), UPLOAD)
    refused.value.message.encode()
