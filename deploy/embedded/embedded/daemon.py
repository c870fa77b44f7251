"""One server process of this machine that outlives whoever started it (I6).

It has a session of its own, a log file, and a file that names it by pid, start time and boot: a pid that the
kernel has given to somebody else is never signalled. Starting it twice adopts the one that runs.
"""

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGPIPE, SIGQUIT, SIGTERM, SIGXFSZ, Signals, pidfd_send_signal

from contracts.errors import Unavailable

_LOG_LIMIT = 16 * 1024 * 1024
# What an interpreter or a `nohup` in front of us may have set to "ignore" and the child would inherit.
_SIGNALS = (SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGXFSZ)
_PLAIN = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")


def identity(pid: int) -> str | None:
    """Names a living process for ever; None for one that is gone or waits to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{pid} {fields[19]} {boot}"


def environment(**extra: str) -> dict[str, str]:
    """What a server needs of ours: no secret of the platform travels into it."""
    return {name: os.environ[name] for name in _PLAIN if name in os.environ} | extra


def write_if_new(path: Path, text: str) -> bool:
    """Whole or not at all, readable by its owner only; False when it said that already."""
    with suppress(FileNotFoundError):
        if path.read_text() == text:
            return False
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(text)
    draft.replace(path)
    return True


class Daemon:
    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder.absolute()
        self.pid_file = self.folder / f"{name}.pid"
        self.log_file = self.folder / f"{name}.log"

    def pid(self) -> int | None:
        """The pid of the running process, None when it does not run."""
        try:
            written = self.pid_file.read_text().strip()
        except FileNotFoundError:
            return None
        if not written:
            return None
        pid = int(written.split()[0])
        # One that we started ourselves and that died stays a zombie until it is waited for.
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        return pid if identity(pid) == written else None

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> bool:
        """False when it runs already; what it runs with is then not looked at."""
        if self.pid() is not None:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rotate_log()
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            env,
            setsid=True,
            setsigmask=(),
            setsigdef=_SIGNALS,
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.log_file), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ),
        )
        write_if_new(self.pid_file, identity(pid) or "")
        return True

    def wait_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if self.pid() is None:
                raise Unavailable(f"{self.name} stopped while starting: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Unavailable(f"{self.name} is not ready after {seconds:g} s: {self.last_words()}")
            time.sleep(0.02)

    def signal(self, number: Signals) -> None:
        pid = self.pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, by: Signals = SIGTERM, seconds: float = 15.0) -> None:
        """Asks, waits, and then kills; returns when the process is gone."""
        pid = self.pid()
        if pid is not None:
            try:
                handle = os.pidfd_open(pid)
            except ProcessLookupError:
                handle = None
            if handle is not None:
                try:
                    # The handle is bound to one process: look once more that it is ours.
                    if self.pid() == pid:
                        _end(handle, by, seconds)
                finally:
                    os.close(handle)
            self.pid()
        self.pid_file.unlink(missing_ok=True)

    def last_words(self) -> str:
        """The last line it logged, and where to read more."""
        try:
            with self.log_file.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
                lines = file.read().decode(errors="replace").split("\n")
        except FileNotFoundError:
            lines = []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no log")
        return f"{last} (see {self.log_file})"

    def _rotate_log(self) -> None:
        with suppress(FileNotFoundError):
            if self.log_file.stat().st_size > _LOG_LIMIT:
                self.log_file.replace(self.log_file.with_suffix(".log.1"))


def _end(handle: int, by: Signals, seconds: float) -> None:
    for number, patience in ((by, seconds), (SIGKILL, 10.0)):
        with suppress(ProcessLookupError):
            pidfd_send_signal(handle, number)
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if poll.poll(patience * 1000):
            return
