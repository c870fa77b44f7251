"""What containers have written: into their own layer, and into the volumes that an image declares (`VOLUME`),
which the engine makes beside it and counts nowhere. Blocking: the engine calls it from its own threads.
"""

import os
from typing import Any

# An empty file takes room, too: an inode, and its entry.
_LEAST = 4096
_BLOCK = 512


def written(client: Any, filters: dict[str, Any]) -> int:
    """Bytes, of all containers that are found."""
    found = client.containers(all=True, size=True, filters=filters)
    return sum(int(one.get("SizeRw", 0)) + sum(map(held, _own_volumes(client, one))) for one in found)


def _own_volumes(client: Any, container: dict[str, Any]) -> list[str]:
    if not any(mount["Type"] == "volume" for mount in container["Mounts"]):
        return []
    # The list does not say where they are.
    mounts = client.inspect_container(container["Id"])["Mounts"]
    return [mount["Source"] for mount in mounts if mount["Type"] == "volume"]


def held(folder: str) -> int:
    """What is below a folder, whoever changes it meanwhile."""
    total, waiting = 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += _size(entry)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:
            continue
    return total


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return max(_LEAST, entry.stat(follow_symlinks=False).st_blocks * _BLOCK)
    except OSError:
        return 0
