import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts.errors import Unavailable
from embedded.daemon import Daemon, environment, identity

SLEEPER = ["sleep", "1000"]
# Deaf to SIGTERM, and says when it has become so.
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(1000)",
]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon("server", tmp_path / "server")
    yield daemon
    daemon.stop(signal.SIGKILL)


def test_a_second_start_adopts_what_runs(daemon: Daemon) -> None:
    assert daemon.start(SLEEPER, environment())
    pid = daemon.pid()
    again = Daemon("server", daemon.folder)
    assert not again.start(SLEEPER, environment())
    assert again.pid() == pid is not None


def test_it_outlives_the_process_that_started_it_and_its_session(daemon: Daemon) -> None:
    script = f"""
        from pathlib import Path
        from embedded.daemon import Daemon, environment
        Daemon("server", Path({str(daemon.folder)!r})).start({SLEEPER!r}, environment())
    """
    starter = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], start_new_session=True)
    assert starter.wait() == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(starter.pid, signal.SIGKILL)
    pid = daemon.pid()
    assert pid is not None
    assert os.getsid(pid) == pid


def test_a_recycled_pid_is_not_taken_for_the_server_and_never_signalled(daemon: Daemon) -> None:
    with subprocess.Popen(SLEEPER) as stranger:
        pid, started, boot = (identity(stranger.pid) or "").split()
        daemon.folder.mkdir()
        daemon.pid_file.write_text(f"{pid} {int(started) - 1} {boot}")
        assert daemon.pid() is None
        daemon.signal(signal.SIGKILL)
        daemon.stop(signal.SIGKILL)
        assert stranger.poll() is None
        stranger.kill()


def test_stop_waits_kills_what_does_not_listen_and_may_be_repeated(daemon: Daemon) -> None:
    daemon.start(STUBBORN, environment())
    daemon.wait_ready(lambda: "deaf" in daemon.log_file.read_text(), seconds=10)
    pid = daemon.pid()
    daemon.stop(seconds=0.1)
    assert pid is not None
    assert identity(pid) is None
    assert not daemon.pid_file.exists()
    daemon.stop()


def test_a_server_that_ends_while_starting_is_reported_with_its_last_words(daemon: Daemon) -> None:
    daemon.start([sys.executable, "-c", "raise SystemExit('port 80 is taken')"], environment())
    with pytest.raises(Unavailable, match="server stopped while starting: port 80 is taken"):
        daemon.wait_ready(lambda: False, seconds=10)


def test_a_killed_server_starts_anew(daemon: Daemon) -> None:
    daemon.start(SLEEPER, environment())
    first = daemon.pid()
    daemon.stop(signal.SIGKILL)
    assert daemon.start(SLEEPER, environment())
    assert daemon.pid() not in (first, None)


def test_no_secret_of_the_platform_reaches_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTH_SECRET", "precious")
    assert "precious" not in environment(LC_ALL="C").values()
