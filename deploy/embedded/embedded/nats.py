"""The NATS server of this machine: from its wheel, JetStream flushed before it acknowledges. It listens on
loopback, and with a public host on every address, where nodes of other machines come to it over TLS.

Who may connect and say what is the caller's text (`runtime.permissions`); a changed text is reloaded into
the server that runs, without a disconnect.
"""

import socket
from pathlib import Path
from signal import SIGHUP

from embedded import wheels
from embedded.certificate import Certificate
from embedded.daemon import Daemon, environment, write_if_new

_ANYWHERE = "0.0.0.0"  # noqa: S104 nodes of other machines come to it, over TLS


class Nats:
    def __init__(self, folder: Path, port: int, config: str, public_host: str | None = None) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.certificate = None if public_host is None else Certificate(self.folder, public_host)
        self.daemon = Daemon("nats", self.folder)
        self._permissions = config
        self._config = f"""\
listen: "{"127.0.0.1" if self.certificate is None else _ANYWHERE}:{port}"
server_name: "berth"
jetstream {{
  store_dir: "{self.folder}"
  sync_interval: always
}}
include "permissions.conf"
"""
        if self.certificate is not None:
            # The services of this machine need none; a node insists on it before it says a word.
            self._config += f"""\
allow_non_tls: true
tls {{
  cert_file: "{self.certificate.public}"
  key_file: "{self.certificate.key}"
  handshake_first: "auto"
}}
"""

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self.folder / "nats.conf"
        new_certificate = self.certificate is not None and self.certificate.ensure()
        if write_if_new(config, self._config) or new_certificate:
            self.daemon.stop()
        permissions_changed = write_if_new(self.folder / "permissions.conf", self._permissions)
        argv = [wheels.nats_server(), "--config", str(config)]
        if not self.daemon.start(argv, environment(GOMEMLIMIT="64MiB")) and permissions_changed:
            self.daemon.signal(SIGHUP)

    @property
    def public_url(self) -> str | None:
        """For nodes of other machines."""
        return None if self.certificate is None else f"tls://{self.certificate.host}:{self.port}"

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
