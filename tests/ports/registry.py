"""A container registry of one image behind a password, on loopback: enough for the engine to pull from."""

import base64
import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

USER, PASSWORD = "node", "a-password-of-the-tests"


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def made(body: bytes = b"", volumes: int = 0) -> tuple[bytes, dict[str, bytes]]:
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        info = tarfile.TarInfo("hello")
        info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/hello"], "Volumes": {f"/v{number}": {} for number in range(volumes)}},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer.getvalue())]},
        }
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": _digest(config),
        },
        "layers": [
            {
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar",
                "size": len(layer.getvalue()),
                "digest": _digest(layer.getvalue()),
            }
        ],
    }
    return json.dumps(manifest).encode(), {
        _digest(config): config,
        _digest(layer.getvalue()): layer.getvalue(),
    }


Image = tuple[bytes, dict[str, bytes]]


def saved(archive: bytes) -> Image:
    """What `docker save` wrote, as a registry has it."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:

        def read(name: str) -> bytes:
            found = tar.extractfile(name)
            assert found is not None
            return found.read()

        [listed] = json.loads(read("manifest.json"))
        config, layers = read(listed["Config"]), [read(name) for name in listed["Layers"]]
    kind = "application/vnd.docker.image.rootfs.diff.tar"
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {
            "mediaType": "application/vnd.docker.container.image.v1+json",
            "size": len(config),
            "digest": _digest(config),
        },
        "layers": [{"mediaType": kind, "size": len(data), "digest": _digest(data)} for data in layers],
    }
    return json.dumps(manifest).encode(), {_digest(data): data for data in (config, *layers)}


@contextmanager
def registry(image: Image | None = None, asked: list[str | None] | None = None) -> Iterator[str]:
    """The reference of the image in it. `asked`: the log-in of every request."""
    manifest, blobs = image or made()
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Answers(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, format: str, *args: object) -> None:
            return

        def _answer(self, *, body: bool) -> None:
            status, kind, data = 200, "application/json", b"{}"
            if asked is not None:
                asked.append(self.headers.get("Authorization"))
            if self.headers.get("Authorization") != f"Basic {login}":
                status = 401
            elif "/manifests/" in self.path:
                kind, data = "application/vnd.docker.distribution.manifest.v2+json", manifest
            elif "/blobs/" in self.path:
                kind, data = "application/octet-stream", blobs[self.path.rpartition("/")[2]]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Docker-Content-Digest", _digest(data))
            if status == 401:
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
            self.end_headers()
            if body:
                self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}/berth-test/pulled:1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
