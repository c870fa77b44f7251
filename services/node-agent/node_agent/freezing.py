"""Lets mounted volumes stand still together, so that what is read of them meanwhile is of one moment.
Blocking."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from contracts.errors import ProviderFailed

from node_agent import thaw
from node_agent.commands import run

# An instance that cannot write for longer may well be given up by whoever waits for it.
LONGEST_SECONDS = 20.0


def flush(mounts: Sequence[Path]) -> None:
    """What has been written so far does not have to be on the disk only when they are to stand still."""
    for mount in mounts:
        run("sync", "-f", str(mount))


@contextmanager
def frozen(mounts: Sequence[Path], seconds: float = LONGEST_SECONDS) -> Iterator[None]:
    """Raises ProviderFailed at its end where it took too long: then what was read is of no one moment."""
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
            raise ProviderFailed(
                f"its volumes could not be read within the {seconds:g} s they may stand still"
            )
        if code != thaw.DONE:
            raise ProviderFailed("its volumes did not stand still")
