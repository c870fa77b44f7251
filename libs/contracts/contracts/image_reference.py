"""Names of container images, as customers and administrators write them. PURE.

`parse` knows the grammar of the engine, `[host[:port]/]path[:tag][@digest]`, and fills in what it leaves out:
the public registry, its `library/`, and `latest` where there is neither tag nor digest.
"""

import re
from dataclasses import dataclass

from contracts.errors import InvalidInput

HUB = "docker.io"
_HUBS = (HUB, "index.docker.io", "registry-1.docker.io")
_LONGEST = 255
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?")
_PART = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageReference:
    """`host` is the registry, with its port where it names one."""

    host: str
    path: str
    tag: str | None
    digest: str | None

    @property
    def repository(self) -> str:
        return f"{self.host}/{self.path}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.repository}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse(text: str) -> ImageReference:
    name, _, digest = text.partition("@")
    if digest and not _DIGEST.fullmatch(digest):
        raise _refused(text, "has a digest that is not sha256: and 64 hexadecimal digits")
    first, slash, rest = name.partition("/")
    if not (slash and ("." in first or ":" in first or first == "localhost")):
        first, rest = HUB, name
    path, colon, tag = rest.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refused(text, "has a tag that cannot be")
    if not _HOST.fullmatch(first):
        raise _refused(text, "names a registry that cannot be")
    host = HUB if first.lower() in _HUBS else first.lower()
    if host == HUB and "/" not in path:
        path = f"library/{path}"
    if (
        len(text) > _LONGEST
        or path == "library/sha256"
        or not all(_PART.fullmatch(part) for part in path.split("/"))
    ):
        raise _refused(text, "has a name that cannot be")
    return ImageReference(host, path, tag or (None if digest else "latest"), digest or None)


def registry(text: str) -> str:
    """A registry by itself, as `ImageReference.host` has it."""
    found = parse(f"{text}/image")
    if found.path not in ("image", "library/image"):
        raise _refused(text, "names a registry that cannot be")
    return found.host


def _refused(text: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"the image reference {why}; it must look like nginx:1.27 or registry.example.com/team/app:2.0",
        reference=text[:_LONGEST],
    )
