"""Archives for tests: good ones, and those an enemy would send."""

import gzip
import io
import tarfile
from collections.abc import Iterable, Mapping


def packed(files: Mapping[str, str | bytes], *, compress: bool = True) -> bytes:
    return tar(
        (
            (name, tarfile.REGTYPE, body.encode() if isinstance(body, str) else body)
            for name, body in files.items()
        ),
        compress=compress,
    )


def tar(members: Iterable[tuple[str, bytes, bytes | str]], *, compress: bool = True) -> bytes:
    """Members as (name, type, body or link's target), exactly as given."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as out:
        for name, kind, body in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
            if isinstance(body, str):
                info.linkname = body
                out.addfile(info)
            else:
                info.size = len(body)
                out.addfile(info, io.BytesIO(body))
    return gzip.compress(raw.getvalue(), 1) if compress else raw.getvalue()
