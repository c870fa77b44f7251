"""A container registry on loopback that takes what an engine pushes, and remembers who asked how."""

import base64
import hashlib
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class PushRegistry:
    address: str = ""
    # (repository, tag) -> digest
    manifests: dict[tuple[str, str], str] = field(default_factory=dict)
    blobs: set[str] = field(default_factory=set)
    asked: bool = False
    logged_in: bool = False


@contextmanager
def push_registry(login: str | None = None) -> Iterator[PushRegistry]:
    """With `login`, only who says it is let in."""
    registry = PushRegistry()

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            return

        def _say(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _admitted(self) -> bool:
            registry.asked = True
            said = self.headers.get("Authorization", "")
            if login is None:
                return True
            if said == f"Basic {base64.b64encode(login.encode()).decode()}":
                registry.logged_in = True
                return True
            self._say(401, WWW_Authenticate='Basic realm="tests"')
            return False

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def do_GET(self) -> None:
            if self._admitted():
                self._say(200 if self.path == "/v2/" else 404)

        def do_HEAD(self) -> None:
            if self._admitted():
                digest = self.path.rpartition("/")[2]
                self._say(200 if digest in registry.blobs else 404, Docker_Content_Digest=digest)

        def do_POST(self) -> None:
            self._body()
            if self._admitted():
                self._say(202, Location=f"{self.path}upload", Docker_Upload_UUID="upload")

        def do_PATCH(self) -> None:
            body = self._body()
            if self._admitted():
                self._say(202, Location=self.path, Docker_Upload_UUID="upload", Range=f"0-{len(body) - 1}")

        def do_PUT(self) -> None:
            body = self._body()
            if not self._admitted():
                return
            path, _, query = self.path.partition("?")
            if "/manifests/" in path:
                repository, _, tag = path.removeprefix("/v2/").partition("/manifests/")
                digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
                registry.manifests[(repository, tag)] = digest
            else:
                digest = query.partition("digest=")[2].replace("%3A", ":")
                registry.blobs.add(digest)
            self._say(201, Docker_Content_Digest=digest)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    registry.address = f"127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
