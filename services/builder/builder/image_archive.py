"""An image as an archive the engine loads: a configuration, and the layers it does not have yet. Blocking.

What a build has made is taken by its content alone: each layer is weighed, hashed and, where it was packed,
unpacked within a budget. The layers below, of the image it stands on, are named and left out: the engine has
them, and takes no others under their names.
"""

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO, cast

from builder.image_builder import FoundImage, StepFailed

_CHUNK = 1024 * 1024
# The same for the same content, whenever it was made.
_MADE = "1980-01-01T00:00:01Z"


@dataclass(frozen=True, slots=True)
class Layer:
    """A plain tar and the digest of it."""

    tar: BinaryIO
    content: str
    size: int


def layer(tar: BinaryIO) -> Layer:
    return Layer(tar, _digest(tar), tar.tell())


def files(contents: Mapping[str, tuple[bytes, int]]) -> BinaryIO:
    """A small layer: path -> content and mode."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, (data, mode) in contents.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            tar.addfile(info, io.BytesIO(data))
    return made


def only_file(wrapped: BinaryIO, name: str) -> BinaryIO:
    """The engine hands out a file wrapped in a tar of its own."""
    try:
        with tarfile.open(fileobj=wrapped, mode="r:") as tar:
            member = tar.next()
            if member is None or not member.isreg() or member.name != name:
                raise StepFailed("image", f"{name} is not a plain file")
            return cast(BinaryIO, tar.extractfile(member))
    except tarfile.TarError as error:
        raise StepFailed("image", f"{name} could not be read: {error}") from error


def unpacked(
    blob: BinaryIO, digest: str, content: str, *, compressed: bool, into: BinaryIO, most: int
) -> Layer:
    """The layer in a blob, when both are what their digests say."""
    if _digest(blob) != digest:
        raise StepFailed("image", f"the layer {digest} is not what its digest says")
    blob.seek(0)
    found, size = sha256(), 0
    source = gzip.GzipFile(fileobj=blob, mode="rb") if compressed else blob
    try:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > most:
                raise StepFailed("image", f"the layer {digest} unpacks to more than {most // _CHUNK} MiB")
            found.update(chunk)
            into.write(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise StepFailed("image", f"the layer {digest} could not be unpacked: {error}") from error
    if f"sha256:{found.hexdigest()}" != content:
        raise StepFailed("image", f"the layer {digest} does not hold what the image's configuration says")
    return Layer(into, content, size)


def write(base: FoundImage, layers: Sequence[Layer], config: Mapping[str, Any], into: BinaryIO) -> str:
    """The id the image has by its configuration."""
    contents = [*base.layers, *(one.content for one in layers)]
    body = json.dumps(
        {
            "architecture": base.architecture,
            "os": base.os,
            "created": _MADE,
            "config": dict(config),
            "rootfs": {"type": "layers", "diff_ids": contents},
        },
        sort_keys=True,
    ).encode()
    name = sha256(body).hexdigest()
    with tarfile.open(fileobj=into, mode="w") as tar:
        places = [_place(content) for content in contents]
        written: set[str] = set()
        for one in layers:
            if one.content in written:
                continue
            written.add(one.content)
            info = tarfile.TarInfo(_place(one.content))
            info.size, info.mode = one.size, 0o644
            one.tar.seek(0)
            tar.addfile(info, one.tar)
        manifest = json.dumps([{"Config": f"{name}.json", "RepoTags": None, "Layers": places}]).encode()
        for path, data in ((f"{name}.json", body), ("manifest.json", manifest)):
            info = tarfile.TarInfo(path)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    into.seek(0)
    return f"sha256:{name}"


def _place(content: str) -> str:
    return f"{content.removeprefix('sha256:')}/layer.tar"


def _digest(file: BinaryIO) -> str:
    file.seek(0)
    found = sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return f"sha256:{found.hexdigest()}"
