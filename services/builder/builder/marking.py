"""Keeps the engine's cache of layers apart, app by app.

The engine would give anybody a layer that somebody's same instruction on the same base once made. So each
stage of a Dockerfile begins with an argument that names the cache it may use: no layer above it is ever
another app's, and a cache is cleared by naming the next one. Blocking: works on a build's context.
"""

import io
import posixpath
import tarfile
from typing import BinaryIO

from builder import dockerfile


def mark_of(cache: str) -> str:
    return f"ARG BERTH_CACHE={cache}"


def mark(context: BinaryIO, path: str, cache: str) -> int:
    """Puts the Dockerfile into the context once more, marked: the later one counts. How many marks it has;
    none when there is no such file, about which the engine finds its own words."""
    text, end = _read(context, path)
    if text is None:
        return 0
    marked, count = dockerfile.marked(text, mark_of(cache))
    body = marked.encode(errors="surrogateescape")
    info = tarfile.TarInfo(posixpath.normpath(path))
    info.size, info.mode = len(body), 0o644
    context.seek(end)
    with tarfile.open(fileobj=context, mode="w") as tar:
        tar.addfile(info, io.BytesIO(body))
    # Without the padding, as it was.
    context.truncate(tar.offset)
    context.seek(0)
    return count


def _read(context: BinaryIO, path: str) -> tuple[str | None, int]:
    """The Dockerfile's text, and where the last file ends."""
    context.seek(0)
    name = posixpath.normpath(path)
    text: bytes | None = None
    with tarfile.open(fileobj=context, mode="r:") as tar:
        while (member := tar.next()) is not None:
            file = tar.extractfile(member) if posixpath.normpath(member.name) == name else None
            text = text if file is None else file.read()
            # Remembering every file of a large context would take more memory than the context.
            tar.members = []  # type: ignore[attr-defined]
        return None if text is None else text.decode(errors="surrogateescape"), tar.offset
