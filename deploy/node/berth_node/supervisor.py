"""Keeps the engine and the node's services running where there is no systemd.

Invariant: what ends is started again, later each time it ends soon; at a SIGTERM the services are asked to
end, and the instances go on. One runs at a time: a lock says so.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from contracts.errors import Conflict, Unavailable

from berth_node.joining import read
from berth_node.layout import Layout
from berth_node.services import Run, runs

Part = Literal["engine", "services"]
ENGINE = Run("dockerd", "the container engine", ("dockerd",))
SOON = 20.0
LONGEST_PAUSE = 60.0
_PATIENCE = 45.0
_LOG_LIMIT = 16 * 1024 * 1024
_LOOK_EVERY = 30.0
# No secret of whoever starts it travels into a service.
_PLAIN = ("PATH", "HOME", "LANG", "TZ")
_NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


class Kept:
    """One service, in a thread that waits for it."""

    def __init__(self, run: Run, log: Path) -> None:
        self.run = run
        self._log = log
        self._ending = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name=run.name)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        process = self._process
        if process is not None:
            with suppress(ProcessLookupError):
                process.terminate()

    def wait(self) -> None:
        self._thread.join(_PATIENCE)
        process = self._process
        if self._thread.is_alive() and process is not None:
            process.kill()
            self._thread.join()

    def rotate_log(self) -> None:
        """The service goes on writing to the same file, at its new end."""
        if self._log.exists() and self._log.stat().st_size > _LOG_LIMIT:
            old = self._log.with_suffix(".log.1")
            try:
                shutil.copyfile(self._log, old)
            except OSError:
                # The disk is full, and this is what gives it room.
                old.unlink(missing_ok=True)
            os.truncate(self._log, 0)

    def _keep(self) -> None:
        pause = 1.0
        while not self._ending.is_set():
            began = time.monotonic()
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    list(self.run.argv),
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if self._ending.is_set():
                self._process.terminate()
            self._process.wait()
            pause = 1.0 if time.monotonic() - began > SOON else min(pause * 2, LONGEST_PAUSE)
            self._ending.wait(pause)

    def _environment(self) -> dict[str, str]:
        passed = (*_PLAIN, *_NETWORK, *map(str.lower, _NETWORK))
        ours = {name: os.environ[name] for name in passed if name in os.environ}
        told = read(self.run.environment_file) if self.run.environment_file else {}
        return {**ours, "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), **told}


def supervise(layout: Layout, part: Part) -> int:
    layout.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _lock_file(layout, part).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"the {part} of this node is kept running already") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        logs = layout.state / "logs"
        logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        wanted = (ENGINE,) if part == "engine" else runs(layout)
        kept = [Kept(run, logs / f"{run.name}.log") for run in wanted]
        for one in kept:
            one.start()
        while not ended.wait(_LOOK_EVERY):
            for one in kept:
                # Where the disk fails, somebody still has to be there who ends what he has begun.
                with suppress(OSError):
                    one.rotate_log()
        for one in kept:
            one.stop()
        for one in kept:
            one.wait()
    return 0


def pid(layout: Layout, part: Part) -> int | None:
    """Of the supervisor that runs."""
    try:
        with _lock_file(layout, part).open("r+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(lock.read() or 0) or None
            return None
    except FileNotFoundError:
        return None


def begin(layout: Layout, part: Part) -> None:
    """In the background, for as long as this machine is up."""
    if pid(layout, part) is not None:
        return
    subprocess.Popen(
        [str(layout.program / "berth-node"), "supervise", part],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    _until(lambda: pid(layout, part) is not None, 10, f"run `berth-node supervise {part}` and see")


def end(layout: Layout, part: Part) -> None:
    number = pid(layout, part)
    if number is not None:
        os.kill(number, signal.SIGTERM)
        _until(
            lambda: pid(layout, part) is None, 2 * _PATIENCE, f"the supervisor (pid {number}) does not end"
        )


def _lock_file(layout: Layout, part: Part) -> Path:
    return layout.run / f"{part}.pid"


def _until(done: Callable[[], bool], seconds: float, words: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise Unavailable(words)
        time.sleep(0.05)
