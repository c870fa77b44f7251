"""The NATS server of this machine: from its wheel, on loopback, JetStream flushed before it acknowledges.

Who may connect and say what is the caller's text (`runtime.permissions`); a changed text is reloaded into
the server that runs, without a disconnect.
"""

import socket
from pathlib import Path
from signal import SIGHUP

from embedded import wheels
from embedded.daemon import Daemon, environment, write_if_new


class Nats:
    def __init__(self, folder: Path, port: int, config: str) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.daemon = Daemon("nats", self.folder)
        self._permissions = config
        self._config = f"""\
listen: "127.0.0.1:{port}"
server_name: "berth"
jetstream {{
  store_dir: "{self.folder}"
  sync_interval: always
}}
include "permissions.conf"
"""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.folder / "nats.conf"
        if write_if_new(config, self._config):
            self.daemon.stop()
        permissions_changed = write_if_new(self.folder / "permissions.conf", self._permissions)
        argv = [wheels.nats_server(), "--config", str(config)]
        if not self.daemon.start(argv, environment(GOMEMLIMIT="64MiB")) and permissions_changed:
            self.daemon.signal(SIGHUP)

    def ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(5) == b"INFO "
        except OSError:
            return False

    def wait_ready(self, seconds: float = 20) -> None:
        self.daemon.wait_ready(self.ready, seconds)

    def stop(self) -> None:
        self.daemon.stop()
