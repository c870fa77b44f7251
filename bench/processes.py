"""What processes cost, from /proc: memory and CPU time of a process and all its children."""

import os
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(_fields(stat)[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found.extend(children.get(one, ()))
    return found


def pss_mb(pid: int) -> float:
    """Pages that several processes share are divided among them, so a sum counts each once."""
    return sum(_rollup(one, "Pss:") for one in family(pid))


def rss_mb(pid: int) -> float:
    """Shared pages count whole: what a process costs on a machine where nothing else shares them."""
    return sum(_rollup(one, "Rss:") for one in family(pid))


def cpu_seconds(pid: int) -> float:
    """Since they began, the children that have ended included."""
    fields = _fields(Path(f"/proc/{pid}/stat"))
    ended = int(fields[13]) + int(fields[14])
    return (ended + sum(_ticks(one) for one in family(pid))) / _TICK


def _ticks(pid: int) -> int:
    try:
        fields = _fields(Path(f"/proc/{pid}/stat"))
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(fields[11]) + int(fields[12])


def _rollup(pid: int, key: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def _fields(stat: Path) -> list[str]:
    """From the process's state on; its name before may hold anything."""
    return stat.read_text().rpartition(")")[2].split()
