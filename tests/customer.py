"""A customer, as the platform meets one: over HTTP, through the public door."""

import gzip
import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from tests.harness import eventually

PASSWORD = "correct horse battery"
ENDED = {"running", "failed", "superseded", "cancelled"}


def archive(files: Mapping[str, str]) -> bytes:
    """A tar.gz of a source tree."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


def folder(path: Path) -> bytes:
    return archive({str(p.relative_to(path)): p.read_text() for p in sorted(path.rglob("*")) if p.is_file()})


def hello(word: str = "hello") -> bytes:
    """The least app there is: one file served by Python, no dependencies, so it builds in a second."""
    server = (
        "import http.server, os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "class Hello(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        f"        body = b'{word}\\n'\n"
        "        self.send_response(200)\n"
        "        self.send_header('Content-Length', str(len(body)))\n"
        "        self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "    def log_message(self, *_): pass\n"
        "http.server.ThreadingHTTPServer(('', int(os.environ['PORT'])), Hello).serve_forever()\n"
    )
    dockerfile = 'FROM berth/python:3.11\nCOPY app.py /app.py\nCMD ["python3", "/app.py"]\n'
    return archive({"Dockerfile": dockerfile, "app.py": server})


class Refused(AssertionError):
    def __init__(self, response: httpx.Response) -> None:
        super().__init__(
            f"{response.request.method} {response.request.url.path}: {response.status_code} {response.text}"
        )
        self.status = response.status_code
        self.error = (
            response.json().get("error", {}) if "json" in response.headers.get("content-type", "") else {}
        )


@dataclass
class Customer:
    api: str
    ingress: str = ""
    token: str | None = None
    organization: str | None = None
    transport: httpx.AsyncBaseTransport | None = None
    _client: httpx.AsyncClient | None = field(default=None, repr=False)

    async def __aenter__(self) -> Self:
        self._client = httpx.AsyncClient(base_url=self.api, timeout=30, transport=self.transport)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.client.aclose()

    @property
    def client(self) -> httpx.AsyncClient:
        assert self._client is not None, "async with Customer(...)"
        return self._client

    @property
    def headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return headers | ({"X-Organization": self.organization} if self.organization else {})

    async def call(self, method: str, path: str, *, retry: bool = False, **options: Any) -> Any:
        """The answer's JSON. `retry`: as a client should when the platform says it is away for a moment."""

        async def once() -> httpx.Response | None:
            headers = self.headers | options.get("headers", {})
            try:
                response = await self.client.request(method, path, **{**options, "headers": headers})
            except httpx.TransportError:
                if retry:
                    return None
                raise
            return None if retry and response.status_code in (502, 503) else response

        response = (
            await eventually(once, seconds=60, every=0.3, what=f"{method} {path}") if retry else await once()
        )
        assert response is not None
        if response.is_error:
            raise Refused(response)
        return response.json() if response.content else None

    # --- identity --------------------------------------------------------------------------------------

    async def register(self, email: str, organization: str = "Shop Ltd") -> None:
        body = {"email": email, "password": PASSWORD, "organization": organization}
        await self.call("POST", "/api/auth/register", json=body)
        await self.log_in(email, PASSWORD)

    async def log_in(self, email: str, password: str) -> None:
        answer = await self.call("POST", "/api/auth/login", json={"email": email, "password": password})
        self.token = answer["token"]
        me = await self.call("GET", "/api/auth/me")
        if me["organizations"]:
            self.organization = me["organizations"][0]["id"]

    async def found(self, organization: str) -> None:
        answer = await self.call("POST", "/api/organizations", json={"name": organization})
        self.organization = str(answer["id"])

    # --- apps ------------------------------------------------------------------------------------------

    async def create(self, name: str, *, retry: bool = False, **more: Any) -> str:
        answer = await self.call(
            "POST", "/api/paas/apps", retry=retry, json={"name": name, "plan": "small", **more}
        )
        return str(answer["id"])

    async def upload(self, app: str, source: bytes, *, retry: bool = False) -> Any:
        headers = {"Content-Type": "application/gzip"}
        return await self.call(
            "POST", f"/api/paas/apps/{app}/source", retry=retry, content=source, headers=headers
        )

    async def deploy(self, app: str, source: bytes | None = None, *, retry: bool = False) -> str:
        if source is not None:
            await self.upload(app, source, retry=retry)
        answer = await self.call("POST", f"/api/paas/apps/{app}/deploy", retry=retry, json={})
        return str(answer["id"])

    async def ended(self, deployment: str, seconds: float = 120) -> Any:
        """The deployment, once it has come to its end."""

        async def look() -> Any:
            found = await self.call("GET", f"/api/paas/deployments/{deployment}", retry=True)
            return found if found["status"] in ENDED else None

        return await eventually(look, seconds=seconds, every=0.1, what=f"the end of {deployment}")

    async def live(self, name: str, source: bytes, **more: Any) -> tuple[str, Any]:
        """An app from nothing to running."""
        app = await self.create(name, **more)
        ended = await self.ended(await self.deploy(app, source))
        assert ended["status"] == "running", ended
        return app, await self.call("GET", f"/api/paas/apps/{app}")

    async def status(self, app: str, wanted: str, seconds: float = 30) -> Any:
        async def look() -> Any:
            found = await self.call("GET", f"/api/paas/apps/{app}", retry=True)
            return found if found["status"] == wanted else None

        return await eventually(look, seconds=seconds, every=0.1, what=f"status {wanted}")

    async def log(self, deployment: str) -> AsyncIterator[tuple[str, Any]]:
        """Events of the live log as (event, data), until it ends."""
        path = f"/api/paas/deployments/{deployment}/log/stream"
        async with self.client.stream("GET", path, headers=self.headers, timeout=120) as response:
            assert response.status_code == 200, await response.aread()
            kind = "message"
            async for line in response.aiter_lines():
                if line.startswith("event:"):
                    kind = line[6:].strip()
                elif line.startswith("data:"):
                    yield kind, json.loads(line[5:])
                    if kind == "end":
                        return
                elif not line:
                    kind = "message"

    async def said(self, app: str, text: str, seconds: float = 30) -> Any:
        """The line of one of its instances, once it is kept."""

        async def look() -> Any:
            page = await self.call("GET", f"/api/paas/apps/{app}/logs?lines=1000", retry=True)
            return next((line for line in page["lines"] if line["text"] == text), None)

        return await eventually(look, seconds=seconds, every=0.1, what=f"the line {text!r}")

    # --- as a visitor ------------------------------------------------------------------------------------

    async def visit(self, hostname: str, path: str = "/") -> httpx.Response:
        return await self.client.get(f"{self.ingress}{path}", headers={"Host": hostname})

    async def answers(self, hostname: str, text: str, seconds: float = 30) -> None:
        async def look() -> bool:
            try:
                response = await self.visit(hostname)
            except httpx.TransportError:
                return False
            return response.status_code == 200 and text in response.text

        await eventually(look, seconds=seconds, every=0.1, what=f"{hostname} saying {text!r}")

    async def silent(self, hostname: str, seconds: float = 30) -> None:
        async def look() -> bool:
            return (await self.visit(hostname)).status_code in (404, 502, 503)

        await eventually(look, seconds=seconds, every=0.1, what=f"{hostname} gone")
