"""Git servers over HTTP, HTTPS and what they serve: `git http-backend` behind Python's own server."""

import base64
import http.server
import ipaddress
import os
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_AUTHOR = {
    "GIT_AUTHOR_NAME": "Tests",
    "GIT_AUTHOR_EMAIL": "tests@example.org",
    "GIT_COMMITTER_NAME": "Tests",
    "GIT_COMMITTER_EMAIL": "tests@example.org",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


class Repositories:
    """Bare repositories in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def repository(
        self,
        name: str,
        files: Mapping[str, str],
        links: Mapping[str, str] | None = None,
        submodules: Mapping[str, tuple[str, str]] | None = None,
    ) -> str:
        """The commit on its branch `main`. `submodules`: path -> (URL, commit)."""
        work = self.folder / f"{name}.work"
        work.mkdir(parents=True)
        modules = "".join(
            f'[submodule "{path}"]\n\tpath = {path}\n\turl = {url}\n'
            for path, (url, _) in (submodules or {}).items()
        )
        for path, text in {**files, **({".gitmodules": modules} if modules else {})}.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
            if text.startswith("#!"):
                (work / path).chmod(0o755)
        for path, target in (links or {}).items():
            (work / path).symlink_to(target)
        self._git(work, "init", "--quiet", "--initial-branch=main")
        self._git(work, "add", "--all", "--force")
        for path, (_, commit) in (submodules or {}).items():
            self._git(work, "update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        self._git(work, "commit", "--quiet", "--message", "first")
        self._git(work, "tag", "v1")
        bare = self.folder / f"{name}.git"
        self._git(self.folder, "clone", "--quiet", "--bare", str(work), str(bare))
        self._git(bare, "config", "http.receivepack", "false")
        return self._git(work, "rev-parse", "HEAD").strip()

    def _git(self, folder: Path, *words: str) -> str:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            env={**os.environ, **_AUTHOR},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout


class GitServer(Repositories):
    """`certificate`: what a client must trust. `asked`: the log-in of every request."""

    def __init__(self, folder: Path, url: str, certificate: bytes) -> None:
        super().__init__(folder)
        self.url = url
        self.certificate = certificate
        self.asked: list[str | None] = []
        # Where `/moved/` sends to.
        self.moved = "/app.git"


def certificate(folder: Path, address: str) -> bytes:
    """One for the address, written with its key to where a server reads it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    ).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "tls.pem").write_bytes(private + made)
    return made


@contextmanager
def git_server(
    folder: Path, address: str, *, secure: bool = False, login: str | None = None
) -> Iterator[GitServer]:
    """`secure`: over HTTPS. `login`: only for who says this `user:password`."""
    admitted = f"Basic {base64.b64encode(login.encode()).decode()}" if login else None

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def log_message(self, format: str, *args: object) -> None:
            return

        def _answer(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            found.asked.append(self.headers.get("Authorization"))
            if path.startswith("/moved/"):
                self.send_response(301)
                self.send_header("Location", f"{found.moved}/{path.split('/', 3)[3]}?{query}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if admitted is not None and self.headers.get("Authorization") != admitted:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            done = subprocess.run(
                ["git", "http-backend"],
                input=body,
                capture_output=True,
                check=True,
                env={
                    "PATH": os.environ["PATH"],
                    "GIT_PROJECT_ROOT": str(folder),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_CONFIG_COUNT": "1",
                    "GIT_CONFIG_KEY_0": "safe.directory",
                    "GIT_CONFIG_VALUE_0": "*",
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command,
                    "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                    "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                },
            )
            head, _, content = done.stdout.partition(b"\r\n\r\n")
            headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = http.server.ThreadingHTTPServer((address, 0), Answers)
    server.daemon_threads = True
    trusted = b""
    if secure:
        trusted = certificate(folder, address)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "tls.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "https" if secure else "http"
    found = GitServer(folder, f"{scheme}://{address}:{server.server_port}", trusted)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
