"""The Postgres of this machine: programs from a wheel, one cluster in one folder, loopback and passwords.

Postgres refuses to run as root. Started by root, the cluster belongs to a system user of its own; started by
anybody else, to him.
"""

import os
import pwd
import shutil
import stat
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from signal import SIGINT
from urllib.parse import quote

import psycopg
from contracts.errors import Unavailable
from psycopg import sql

from embedded import wheels
from embedded.daemon import Daemon, environment, write_if_new

USER = "berth-postgres"

# A small machine that nobody tunes, shared with the apps; nothing here gives durability away.
SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "100",
    "shared_buffers": "48MB",
    "huge_pages": "off",
    "work_mem": "4MB",
    "maintenance_work_mem": "32MB",
    "min_wal_size": "32MB",
    "max_wal_size": "512MB",
    "jit": "off",
    "io_method": "sync",
    "max_worker_processes": "4",
    "max_parallel_workers_per_gather": "0",
    "max_logical_replication_workers": "0",
    "autovacuum_max_workers": "2",
    "autovacuum_worker_slots": "4",
    "autovacuum_naptime": "30s",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %u@%d ",
    "log_checkpoints": "off",
}


class Postgres:
    def __init__(
        self, folder: Path, port: int, password: str, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.daemon = Daemon("postgres", self.folder)
        self._password = password
        self._data = self.folder / "data"
        self._settings = {**SETTINGS, "port": str(port), **(settings or {})}

    def url(self, user: str = "postgres", password: str | None = None, database: str = "berth") -> str:
        word = self._password if password is None else password
        return f"postgresql://{quote(user, safe='')}:{quote(word, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        owner = _owner()
        if owner is not None:
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        program = wheels.postgres("postgres")
        become = [] if owner is None else _become(owner, self.folder, Path(program).parent)
        if not self._data.exists():
            self._create(become, owner)
        config = "".join(f"{name} = '{value}'\n" for name, value in self._settings.items())
        if self._write(self._data / "postgresql.conf", config, owner):
            self.stop()
        if self.daemon.pid() is None:
            self._bury()
        self._write(self._data / "pg_hba.conf", "host all all 127.0.0.1/32 scram-sha-256\n", owner)
        self.daemon.start([*become, program, "-D", str(self._data)], environment(LC_ALL="C"))

    def ready(self) -> bool:
        try:
            with psycopg.connect(self.url(database="postgres"), connect_timeout=2):
                return True
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise Unavailable(
                    f"the Postgres on port {self.port} refuses the password of this installation"
                ) from error
            return False

    def wait_ready(self, seconds: float = 60) -> None:
        self.daemon.wait_ready(self.ready, seconds)
        self.create_database("berth")

    def create_database(self, name: str) -> None:
        """Nothing happens when it exists."""
        with psycopg.connect(self.url(database="postgres"), autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
            if known is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def stop(self) -> None:
        # Fast shutdown: sessions are ended, nothing committed is lost.
        self.daemon.stop(SIGINT, seconds=60)

    def _bury(self) -> None:
        """After a crash: waits for the last children of the dead server, then takes its lock file away.

        Postgres itself would refuse to start while they linger, or when its old pid belongs to somebody new.
        """
        lock = self._data / "postmaster.pid"
        try:
            memory = lock.read_text().splitlines()[6].split()[1]
        except (FileNotFoundError, IndexError):
            return
        deadline = time.monotonic() + 10
        while _attached(memory):
            if time.monotonic() > deadline:
                return
            time.sleep(0.02)
        lock.unlink(missing_ok=True)

    def _create(self, become: list[str], owner: pwd.struct_passwd | None) -> None:
        """The cluster appears whole or not at all: a start that is cut off begins again."""
        draft = self.folder / "data.new"
        shutil.rmtree(draft, ignore_errors=True)
        password_file = self.folder / "password"
        self._write(password_file, self._password, owner)
        try:
            done = subprocess.run(
                [
                    *become,
                    wheels.postgres("initdb"),
                    f"--pgdata={draft}",
                    "--username=postgres",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--no-instructions",
                ],
                env=environment(LC_ALL="C"),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                check=False,
            )
        finally:
            password_file.unlink()
        if done.returncode != 0:
            words = " ".join(done.stdout.split())[-300:]
            raise Unavailable(f"the Postgres cluster in {self.folder} could not be made: {words}")
        draft.rename(self._data)

    def _write(self, path: Path, text: str, owner: pwd.struct_passwd | None) -> bool:
        new = write_if_new(path, text)
        if owner is not None:
            os.chown(path, owner.pw_uid, owner.pw_gid)
        return new


def _attached(memory: str) -> bool:
    """Whether any process still holds the shared memory segment."""
    segments = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return any(segment[1] == memory and segment[6] != "0" for segment in segments)


def _owner() -> pwd.struct_passwd | None:
    """The user the cluster belongs to, made when it is missing; None: whoever we are."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        pass
    argv = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    argv += ["--shell", "/usr/sbin/nologin", "--comment", "Postgres of Berth", USER]
    try:
        made = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Unavailable(f"Postgres needs a user that is not root: create {USER} and start again") from None
    try:
        return pwd.getpwnam(USER)
    except KeyError:
        raise Unavailable(f"the user {USER} could not be made: {made.stderr.strip()}") from None


def _become(owner: pwd.struct_passwd, *paths: Path) -> list[str]:
    """The argv prefix that turns root into the owner.

    Where a folder on the way is closed to others (a checkout below /root, mode 0700) the process keeps the
    one capability that lets it pass; the alternative would be to open the operator's folders.
    """
    kept = "-all" if all(_open(path, owner) for path in paths) else "-all,+dac_read_search"
    return [
        "setpriv",
        f"--reuid={owner.pw_uid}",
        f"--regid={owner.pw_gid}",
        "--clear-groups",
        "--no-new-privs",
        f"--bounding-set={kept}",
        f"--inh-caps={kept}",
        f"--ambient-caps={kept}",
    ]


def _open(path: Path, owner: pwd.struct_passwd) -> bool:
    for folder in (path, *path.parents):
        status = folder.stat()
        if status.st_uid == owner.pw_uid:
            needed = stat.S_IXUSR
        elif status.st_gid == owner.pw_gid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not status.st_mode & needed:
            return False
    return True
