"""What a container uses, read from the kernel's own files: asking the engine costs a hundred times as much.

Both layouts of control groups are known. Blocking, and quick enough not to matter.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Reading:
    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Group:
    cpu: Path
    memory: Path
    unified: bool


def group_of(pid: int, proc: Path = _PROC, root: Path = _ROOT) -> Group | None:
    """Where the process is accounted for; None when that cannot be seen from here."""
    paths: dict[str, str] = {}
    try:
        for line in (proc / str(pid) / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                paths[controller] = path.lstrip("/")
    except FileNotFoundError:
        return None
    if "cpuacct" in paths and "memory" in paths:
        return Group(root / "cpuacct" / paths["cpuacct"], root / "memory" / paths["memory"], unified=False)
    folder = root / paths.get("", "")
    return Group(folder, folder, unified=True) if (folder / "memory.current").exists() else None


def read(group: Group) -> Reading | None:
    """None when the group has gone."""
    try:
        if group.unified:
            cpu = _field(group.cpu / "cpu.stat", "usage_usec") / 1e6
            held, cached = _number(group.memory / "memory.current"), "inactive_file"
        else:
            cpu = _number(group.cpu / "cpuacct.usage") / 1e9
            held, cached = _number(group.memory / "memory.usage_in_bytes"), "total_inactive_file"
        # Page cache the kernel would give back at once is not held.
        return Reading(cpu, max(0, held - _field(group.memory / "memory.stat", cached)))
    except (FileNotFoundError, OSError):
        return None


def told(stats: dict[str, Any]) -> Reading:
    """What the engine itself says of a container."""
    memory = stats["memory_stats"]
    details = memory.get("stats", {})
    cached = details.get("total_inactive_file", details.get("inactive_file", 0))
    return Reading(
        stats["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, max(0, memory.get("usage", 0) - cached)
    )


def _number(path: Path) -> int:
    # Of the files of control groups, Python's buffered reading takes five times as long.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return int(os.read(descriptor, 64))
    finally:
        os.close(descriptor)


def _field(path: Path, name: str) -> int:
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == name:
            return int(words[1])
    return 0
