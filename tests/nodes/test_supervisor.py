"""What keeps a node's services running where there is no systemd."""

import errno
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from berth_node import supervisor
from berth_node.layout import Layout
from berth_node.services import Run
from berth_node.supervisor import supervise

_LIMIT = 20_000
_COUNTING = "n=0; while :; do n=$((n+1)); echo line $n; [ $((n % 50)) = 0 ] && sleep 0.01; done"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(state=tmp_path / "state", run=tmp_path / "run")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_log_is_bounded_while_its_service_runs(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_LOG_LIMIT", _LIMIT)
    monkeypatch.setattr(supervisor, "_LOOK_EVERY", 0.05)
    monkeypatch.setattr(supervisor, "runs", lambda _: (Run("talks", "", ("sh", "-c", _COUNTING)),))
    log, old = layout.state / "logs" / "talks.log", layout.state / "logs" / "talks.log.1"
    ending = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
    ending.start()
    assert supervise(layout, "services") == 0
    ending.join()
    # One old one, whole, and the new one goes on behind it with no hole in between.
    assert sorted(path.name for path in log.parent.iterdir()) == ["talks.log", "talks.log.1"]
    assert log.stat().st_size < 10 * _LIMIT
    assert old.stat().st_size > _LIMIT
    assert b"\0" not in log.read_bytes()
    last = int(old.read_text().splitlines()[-2].split()[1])
    assert int(log.read_text().splitlines()[-1].split()[1]) > last


def test_a_disk_that_fails_leaves_nobody_without_a_supervisor(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_LOG_LIMIT", _LIMIT)
    monkeypatch.setattr(supervisor, "_LOOK_EVERY", 0.05)
    monkeypatch.setattr(supervisor, "runs", lambda _: (Run("talks", "", ("sh", "-c", _COUNTING)),))
    tried = threading.Event()

    def read_only(*_: object) -> None:
        tried.set()
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "truncate", read_only)
    ending = threading.Timer(2, os.kill, (os.getpid(), signal.SIGTERM))
    ending.start()
    assert supervise(layout, "services") == 0
    ending.join()
    assert tried.is_set()
