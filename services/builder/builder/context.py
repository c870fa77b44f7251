"""From a source archive to a build's context, both tar, without unpacking either. Blocking: runs in a thread.

A single folder around everything is taken off; owners and odd permissions are, too: the platform runs the
result under a user id of the organization's own, which must be able to read it.
"""

import io
import posixpath
import tarfile
from dataclasses import dataclass
from typing import BinaryIO

from contracts.archive import ArchiveLimits, entries

from builder.ignore import Ignore
from builder.image_builder import StepFailed
from builder.recipes.case import LARGEST_TEXT, Recipe, Source


@dataclass(frozen=True, slots=True)
class Survey:
    source: Source
    files: int
    bytes: int
    # The folder of the app, with its slash; empty when it is the whole archive.
    root: str


def survey(
    archive: BinaryIO,
    limits: ArchiveLimits,
    wanted: frozenset[str],
    *,
    unwrap: bool,
    folder: str | None = None,
) -> Survey:
    """`folder`: the app's own, of a source that holds several."""
    inside = _inside(folder)
    names: list[str] = []
    texts: dict[str, str] = {}
    size = 0
    first: str | None = None
    wrapped = unwrap
    for entry in entries(archive, limits):
        top, _, inner = entry.name.partition("/")
        first = first or top
        wrapped = wrapped and top == first and (bool(inner) or entry.info.isdir())
        if entry.info.isdir():
            continue
        names.append(entry.name)
        size += entry.info.size
        # Below the first folder only: texts of others would never be asked for.
        asked = _below(entry.name, inside) in wanted or (wrapped and _below(inner, inside) in wanted)
        if asked and entry.data is not None and entry.info.size <= LARGEST_TEXT:
            texts[entry.name] = entry.data.read().decode(errors="replace")
    root = f"{first}/{inside}" if wrapped and names else inside
    if inside and not any(name.startswith(root) for name in names):
        # What was taken for a folder around everything is the first part of the app's own.
        root = inside
    if inside and not any(name.startswith(root) for name in names):
        raise StepFailed(
            "source",
            f"the source has no folder {folder!r}, which the app names as its own",
            hint="Correct the folder in the app's build settings; it starts at the root of the source.",
        )
    source = Source(
        frozenset(name.removeprefix(root) for name in names if name.startswith(root)),
        {name.removeprefix(root): text for name, text in texts.items() if name.startswith(root)},
    )
    return Survey(source, len(names), size, root)


def write(archive: BinaryIO, limits: ArchiveLimits, survey: Survey, recipe: Recipe, into: BinaryIO) -> None:
    ignored = None
    if not recipe.below:
        ignored = Ignore(survey.source.texts.get(".dockerignore", ""))
    with tarfile.open(fileobj=into, mode="w") as context:
        for entry in entries(archive, limits):
            if not entry.name.startswith(survey.root):
                continue
            name = entry.name.removeprefix(survey.root)
            if any(part in recipe.unwanted for part in name.split("/")):
                continue
            # The engine reads these two even when they are to be left out of the image.
            if (
                ignored is not None
                and name not in (recipe.dockerfile, ".dockerignore")
                and ignored.leaves_out(name)
            ):
                continue
            context.addfile(_plain(entry.info, recipe.below + name), entry.data)
        for name, body in recipe.added.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(body), 0o644
            context.addfile(info, io.BytesIO(body))
    # Without the padding: the engine does not read it, and until it has read everything it does not notice
    # that a build was given up.
    into.truncate(context.offset)
    into.seek(0)


def _inside(folder: str | None) -> str:
    plain = posixpath.normpath(folder or ".")
    if plain.startswith(("../", "/")) or plain == "..":
        raise StepFailed("source", f"the app's folder {folder!r} is not in the source")
    return "" if plain == "." else f"{plain}/"


def _below(name: str, folder: str) -> str:
    return name.removeprefix(folder) if name.startswith(folder) else ""


def _plain(found: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mtime = found.type, found.linkname, int(found.mtime)
    info.size = found.size if found.isfile() else 0
    info.mode = 0o755 if found.isdir() or found.mode & 0o100 else 0o644
    if found.isfile():
        info.type = tarfile.REGTYPE
    return info
