"""A Git server over HTTP: `git http-backend` behind Python's own server, on one address."""

import http.server
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_AUTHOR = {
    "GIT_AUTHOR_NAME": "Tests",
    "GIT_AUTHOR_EMAIL": "tests@example.org",
    "GIT_COMMITTER_NAME": "Tests",
    "GIT_COMMITTER_EMAIL": "tests@example.org",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
}


class GitServer:
    def __init__(self, folder: Path, url: str) -> None:
        self._folder = folder
        self.url = url

    def repository(self, name: str, files: Mapping[str, str], links: Mapping[str, str] | None = None) -> str:
        """The commit on its branch `main`."""
        work = self._folder / f"{name}.work"
        work.mkdir(parents=True)
        for path, text in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text)
        for path, target in (links or {}).items():
            (work / path).symlink_to(target)
        self._git(work, "init", "--quiet", "--initial-branch=main")
        self._git(work, "add", "--all", "--force")
        self._git(work, "commit", "--quiet", "--message", "first")
        self._git(work, "tag", "v1")
        bare = self._folder / f"{name}.git"
        self._git(self._folder, "clone", "--quiet", "--bare", str(work), str(bare))
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


@contextmanager
def git_server(folder: Path, address: str) -> Iterator[GitServer]:
    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def log_message(self, format: str, *args: object) -> None:
            return

        def _answer(self, body: bytes) -> None:
            path, _, query = self.path.partition("?")
            if path.startswith("/moved/"):
                self.send_response(301)
                self.send_header("Location", f"/app.git/{path.split('/', 3)[3]}?{query}")
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
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield GitServer(folder, f"http://{address}:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
