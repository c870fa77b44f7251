"""What a container has written: into its own layer, and into the volumes that its image declares (`VOLUME`),
which the engine makes beside it. Walked through where it can be seen from here: the engine counts no empty
files, and nothing at all where a path is too long for it. Blocking: called from the engine's own threads.
"""

import errno
import os
import stat
from typing import Any

from contracts.errors import ProviderFailed

# An empty file takes room, too: an inode, and its entry.
_LEAST = 4096
_BLOCK = 512
# A path of so many folders is nearly as long as a path can be; each holds two descriptors while it is walked.
_DEEPEST = 200
# Never through a link, and without leaving a trace that whoever is measured could see.
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME
# It was there a moment ago, or was a folder.
_CHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def written(client: Any, container: str, most: int) -> int:
    """Bytes, counted no further than until they are more than `most`. What cannot be measured for what is in
    it is more."""
    found = client.inspect_container(container)
    try:
        return _layer(client, found, most) + _volumes(client, found, most)
    except OSError as error:
        raise ProviderFailed(f"what an instance has written cannot be read: {error}") from error


def _layer(client: Any, container: dict[str, Any], most: int) -> int:
    # An engine whose images are containerd's names no driver, or has nothing to say of it.
    folder = ((container.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
    if folder is not None and _seen(folder):
        return held(folder, most)
    found = client.containers(all=True, size=True, filters={"id": container["Id"]})
    return sum(_told(int(one.get("SizeRw", 0)), most) for one in found)


def _volumes(client: Any, container: dict[str, Any], most: int) -> int:
    own = {mount["Name"]: mount["Source"] for mount in container["Mounts"] if mount["Type"] == "volume"}
    if all(map(_seen, own.values())):
        return sum(held(folder, most) for folder in own.values())
    usage = client.df()["Volumes"] or ()
    return sum(_told(int(one["UsageData"]["Size"]), most) for one in usage if one["Name"] in own)


def _seen(folder: str) -> bool:
    return os.access(folder, os.R_OK | os.X_OK)


def _told(size: int, most: int) -> int:
    """The engine's own word for what it failed to measure is -1."""
    return size if size >= 0 else most + 1


def held(folder: str, most: int, above: int | None = None, deepest: int = _DEEPEST) -> int:
    """What is below a folder, whoever changes it meanwhile. From one open folder to the next: a path could be
    led out of the tree, or be too long for the kernel."""
    if deepest == 0:
        return most + 1
    total, here = 0, os.open(folder, _FOLDER, dir_fd=above)
    try:
        with os.scandir(here) as entries:
            for entry in entries:
                try:
                    total += _size(entry.stat(follow_symlinks=False))
                    if entry.is_dir(follow_symlinks=False):
                        total += held(entry.name, most - total, here, deepest - 1)
                except OSError as error:
                    if error.errno not in _CHANGED:
                        raise
                if total > most:
                    break
    finally:
        os.close(here)
    return total


def _size(found: os.stat_result) -> int:
    taken = max(_LEAST, found.st_blocks * _BLOCK)
    # A file of several names counts in parts: nothing has to be remembered of what was met.
    return taken if stat.S_ISDIR(found.st_mode) else taken // max(1, found.st_nlink)
