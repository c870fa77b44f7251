"""Variables from the customer's hand to the process that reads them, and nowhere else."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.customer import Customer, archive
from tests.harness import eventually
from tests.platform import ADMIN, Platform, platform

SECRET = "correct-horse-battery-staple"
SERVER = """\
import http.server, json, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(dict(os.environ)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Answers).serve_forever()
"""


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    async with platform(tmp_path_factory.mktemp("variables"), "journey") as opened:
        yield opened


@pytest.fixture
async def customer(here: Platform) -> AsyncIterator[Customer]:
    async with here.customer() as administrator, here.customer() as found:
        await administrator.log_in(*ADMIN)
        await found.register("variables@example.org")
        credits = f"/api/admin/organizations/{found.organization}/credits"
        await administrator.call("POST", credits, json={"amount": "25.00"})
        yield found


async def told(customer: Customer, hostname: str, name: str, value: str | None) -> dict[str, Any]:
    """The environment an instance answers with, once a variable of it is this."""

    async def look() -> dict[str, Any] | None:
        try:
            response = await customer.visit(hostname)
        except httpx.TransportError:
            return None
        found = response.json() if response.status_code == 200 else {}
        return found if found and found.get(name) == value else None

    return await eventually(look, seconds=30, every=0.1, what=f"{name}={value!r}")


@pytest.mark.promise("U4", "U5")
async def test_an_app_answers_with_its_variables(here: Platform, customer: Customer) -> None:
    app = await customer.create("vary")
    path = f"/api/paas/apps/{app}/variables"
    await customer.call("PATCH", path, json={"GREETING": "hello\nyou", "SECRET_KEY": SECRET})
    # A build that knows the secret and says it, in one piece or in two, is not heard in the log.
    one, two = SECRET[:9], SECRET[9:]
    dockerfile = (
        "FROM berth/python:3.11\nCOPY app.py /app.py\n"
        f"RUN echo before {one}''{two} after; printf {one}; sleep 0.3; echo {two}; env\n"
        'CMD ["python3", "/app.py"]\n'
    )
    deployment = await customer.deploy(app, archive({"Dockerfile": dockerfile, "app.py": SERVER}))
    live = [json.dumps(data) async for _, data in customer.log(deployment)]
    ended = await customer.ended(deployment)
    assert ended["status"] == "running", ended
    page = await customer.call("GET", f"/api/paas/deployments/{deployment}/log")
    assert "before ******** after" in [line["text"] for line in page["lines"]]
    assert SECRET not in "".join(live) + json.dumps(page)

    view = await customer.call("GET", f"/api/paas/apps/{app}")
    hostname = httpx.URL(view["url"]).host
    environment = await told(customer, hostname, "SECRET_KEY", SECRET)
    assert environment["GREETING"] == "hello\nyou"
    assert environment["PORT"] == str(view["port"])
    assert environment["DYNO"] == environment["PS"] == "web.1"

    # A change replaces what runs, without another build.
    before = {container.id for container in here.containers()}
    await customer.call("PATCH", path, json={"GREETING": "goodbye", "SECRET_KEY": None})
    environment = await told(customer, hostname, "GREETING", "goodbye")
    assert "SECRET_KEY" not in environment
    await eventually(lambda: replaced(here, before), what="the end of the old instance")

    # Nowhere else: not in an answer, not in what the platform's servers keep.
    assert SECRET not in json.dumps(await customer.call("GET", f"/api/paas/apps/{app}"))
    assert await asyncio.to_thread(files_with, here.folder, SECRET) == []


def files_with(folder: Path, text: str) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if text.encode() in path.read_bytes()]


async def replaced(here: Platform, before: set[str | None]) -> bool:
    now = {container.id for container in here.containers()}
    return len(now) == 1 and not now & before
