"""Lets mounted volumes stand still together, so that what is read of them meanwhile is of one moment.
Blocking."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import ProviderFailed
from runtime.clock import Clock

from node_agent import thaw
from node_agent.commands import run

# An instance that cannot write for longer may well be given up by whoever waits for it.
LONGEST_SECONDS = 20.0
# How long they are left alone after they stood still for too long, in vain: twice as long each time in a row.
REST_SECONDS, LONGEST_REST_SECONDS = 3600.0, 86_400.0


class StoodTooLong(ProviderFailed):
    """Asked again at once, they would stand still for as long, and in vain again."""


class Rests:
    """Workloads whose volumes are not to stand still for a while. Known until the agent ends."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # Until when, and for how long in all.
        self._rests: dict[str, tuple[float, float]] = {}

    def check(self, workload: str) -> None:
        until, _ = self._rests.get(workload, (0.0, 0.0))
        left = until - self._clock.monotonic()
        if left > 0:
            raise StoodTooLong(
                f"its volumes could not be read within the {LONGEST_SECONDS:g} s they may stand still; they "
                f"are left alone for {left / 60:.0f} more minutes"
            )

    def begin(self, workload: str) -> None:
        _, last = self._rests.get(workload, (0.0, 0.0))
        rest = min(max(REST_SECONDS, 2 * last), LONGEST_REST_SECONDS)
        self._rests[workload] = self._clock.monotonic() + rest, rest

    def end(self, workload: str) -> None:
        self._rests.pop(workload, None)


def flush(mounts: Sequence[Path]) -> None:
    """What has been written so far does not have to be on the disk only when they are to stand still."""
    for mount in mounts:
        run("sync", "-f", str(mount))


@contextmanager
def frozen(mounts: Sequence[Path], seconds: float = LONGEST_SECONDS) -> Iterator[None]:
    """Raises StoodTooLong at its end where it took too long: then what was read is of no one moment."""
    if not mounts:
        yield
        return
    argv = [sys.executable, "-I", thaw.__file__, str(seconds), *map(str, mounts)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as watcher:
        assert watcher.stdin is not None
        assert watcher.stdout is not None
        assert watcher.stderr is not None
        if watcher.stdout.readline() != b"frozen\n":
            words = watcher.stderr.read().decode(errors="replace")
            raise ProviderFailed(f"its volumes cannot be frozen: {words or 'nobody says why'}")
        try:
            yield
        finally:
            watcher.stdin.close()
            code = watcher.wait()
        if code == thaw.TOO_LONG:
            raise StoodTooLong(f"its volumes could not be read within the {seconds:g} s they may stand still")
        if code != thaw.DONE:
            raise ProviderFailed("its volumes did not stand still")
