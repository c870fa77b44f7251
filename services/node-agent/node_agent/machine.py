"""What this machine has and what is in use of it, read from /proc: no process is asked."""

import os
from dataclasses import dataclass
from pathlib import Path

from contracts.reports import NodeCapacity, NodeUsage

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Share:
    """The most of this machine the platform may give away; none: all of it."""

    cpu_millis: int | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None


class Machine:
    def __init__(self, share: Share, disk: Path, proc: Path = Path("/proc")) -> None:
        self._share = share
        self._disk = disk
        self._proc = proc
        self._ticks = (0, 0)

    def capacity(self) -> NodeCapacity:
        disk = os.statvfs(self._disk)
        return NodeCapacity(
            # More than there is may be given away: CPU is shared in time, memory and disk are not.
            cpu_millis=self._share.cpu_millis or (os.cpu_count() or 1) * 1000,
            memory_mb=_least(self._memory()["MemTotal"], self._share.memory_mb),
            disk_mb=_least(disk.f_blocks * disk.f_frsize // _MIB, self._share.disk_mb),
        )

    def usage(self) -> NodeUsage:
        """CPU since it was asked last."""
        memory = self._memory()
        disk = os.statvfs(self._disk)
        return NodeUsage(
            cpu_millis=self._busy(),
            memory_mb=memory["MemTotal"] - memory["MemAvailable"],
            disk_mb=(disk.f_blocks - disk.f_bfree) * disk.f_frsize // _MIB,
            load=float((self._proc / "loadavg").read_text().split()[0]),
        )

    def _memory(self) -> dict[str, int]:
        lines = (line.split() for line in (self._proc / "meminfo").read_text().splitlines())
        return {words[0].rstrip(":"): int(words[1]) // 1024 for words in lines}

    def _busy(self) -> int:
        # user nice system idle iowait irq softirq steal: guest time is in user already.
        ticks = [int(word) for word in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        total, idle = sum(ticks), ticks[3] + ticks[4]
        before_total, before_idle = self._ticks
        self._ticks = (total, idle)
        passed = total - before_total
        if passed <= 0:
            return 0
        busy = 1 - (idle - before_idle) / passed
        return round((os.cpu_count() or 1) * 1000 * min(max(busy, 0.0), 1.0))


def _least(has: int, may: int | None) -> int:
    return has if may is None else min(has, may)
