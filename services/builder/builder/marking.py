"""What the engine reads of a Dockerfile that is not the customer's word for word.

It would give anybody a layer that somebody's same instruction on the same base once made. So each stage
begins with an argument that names the cache it may use: no layer above it is ever another app's, and a cache
is cleared by naming the next one. And images that only the customer's log-in opens have a name of their own
here. Blocking: works on a build's context.
"""

import io
import posixpath
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

from builder import dockerfile


@dataclass(frozen=True, slots=True)
class Marking:
    cache: str | None
    # An image's name in the Dockerfile -> the one it has here.
    images: Mapping[str, str]
    # What the ARGs are by which the Dockerfile may name it.
    arguments: Mapping[str, str]

    @property
    def mark(self) -> str | None:
        return None if self.cache is None else f"ARG BERTH_CACHE={self.cache}"

    def into(self, context: BinaryIO, path: str) -> int:
        """Puts the Dockerfile into the context once more: the later one counts. How many marks it has; none
        when there is no such file, about which the engine finds its own words."""
        text, end = _read(context, path)
        if text is None:
            return 0
        text, count = dockerfile.renamed(text, self.images, self.arguments), 0
        if self.mark is not None:
            text, count = dockerfile.marked(text, self.mark)
        body = text.encode(errors="surrogateescape")
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
