"""Commands on the data of their app: before it runs, beside it, while it is stopped, and while it sleeps."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from runtime.permissions import SERVICES

from tests.customer import Customer, archive
from tests.harness import eventually
from tests.platform import ADMIN, Platform, platform

SETTINGS = {"GATEWAY_LEAST_SLEEP_MINUTES": "0.01", "NODE_AGENT_HEARTBEAT_SECONDS": "1"}

_NOTES = """
import sqlite3, sys
notes = sqlite3.connect("/data/notes.db", isolation_level=None)
notes.execute("create table if not exists note (words)")
notes.executemany("insert into note values (?)", [[words] for words in sys.argv[1:]])
print(" ".join(words for words, in notes.execute("select words from note order by rowid")))
"""

# Every request reads the file anew.
_SERVER = """
import http.server, os, signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Notes(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = subprocess.check_output(["python3", "/notes.py"])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Notes).serve_forever()
"""

# Whatever it finds of a database, of another volume, of the folders of the machine.
_SPY = (
    "id -u; ls -A /data; find / -xdev -name notes.db 2>/dev/null; find /data -name notes.db; "
    "grep -c ' ext4 .*/dev/loop' /proc/self/mountinfo; "
    "ls -A /data/.. | grep -c mounts; mknod /data/disk b 7 0 2>&1 | grep -o 'not permitted'; exit 0"
)


def source(release: str) -> bytes:
    dockerfile = 'FROM berth/python:3.11\nCOPY *.py /\nCMD ["python3", "/app.py"]\n'
    return archive(
        {
            "Dockerfile": dockerfile,
            "notes.py": _NOTES,
            "app.py": _SERVER,
            "Procfile": f"release: python3 /notes.py {release}\n",
        }
    )


@pytest.fixture
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Platform]:
    folder = tmp_path_factory.mktemp("commands")
    async with platform(folder, "journey", SERVICES, ["node-agent"], **SETTINGS) as opened:
        yield opened


async def run(customer: Customer, app: str, command: str) -> list[str]:
    job = await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": command})

    async def over() -> Any:
        found = await customer.call("GET", f"/api/paas/jobs/{job['id']}")
        return found if found["finished_at"] else None

    found = await eventually(over, seconds=60, every=0.1, what=f"the end of {command!r}")
    page = await customer.call("GET", f"/api/paas/jobs/{job['id']}/log")
    lines = [line["text"] for line in page["lines"]]
    assert found["status"] == "succeeded", (found, lines)
    return lines


async def nothing_is_mounted(here: Platform) -> None:
    async def look() -> bool:
        return str(here.folder) not in await asyncio.to_thread(Path("/proc/self/mountinfo").read_text)

    await eventually(look, seconds=20, what="the end of the mounts")


@pytest.mark.promise("R14.5")
async def test_commands_see_the_data_of_their_app_and_of_no_other(here: Platform) -> None:
    async with here.customer() as customer, here.customer() as stranger:
        for one, name in ((customer, "Notes Ltd"), (stranger, "Others Ltd")):
            await one.log_in(*ADMIN)
            await one.found(name)
            credits = f"/api/admin/organizations/{one.organization}/credits"
            await one.call("POST", credits, json={"amount": "1"})
        await customer.call("PATCH", "/api/admin/paas/plans/small", json={"sleeping": True})
        volume = {"name": "data", "path": "/data", "size_mb": 16}

        # The release phase comes before any instance, and makes the database that these find.
        app = await customer.create("notes")
        await customer.call("POST", f"/api/paas/apps/{app}/volumes", json={**volume, "encrypted": True})
        first = await customer.ended(await customer.deploy(app, source("first")))
        assert first["status"] == "running", first
        hostname = httpx.URL((await customer.call("GET", f"/api/paas/apps/{app}"))["url"]).host
        await customer.answers(hostname, "first\n")
        assert await run(customer, app, "python3 /notes.py beside") == ["first beside"]
        await customer.answers(hostname, "first beside\n")
        # The next one runs while the release before is still there.
        second = await customer.ended(await customer.deploy(app, source("second")))
        assert second["status"] == "running", second
        await customer.answers(hostname, "first beside second\n")

        await customer.call("POST", f"/api/paas/apps/{app}/stop")
        await nothing_is_mounted(here)
        assert await run(customer, app, "python3 /notes.py stopped") == ["first beside second stopped"]
        await nothing_is_mounted(here)

        await customer.call("POST", f"/api/paas/apps/{app}/start")
        await customer.answers(hostname, "first beside second stopped\n")
        await customer.call("PUT", f"/api/paas/apps/{app}/sleep", json={"after_minutes": 0.03})
        await customer.status(app, "sleeping", seconds=40)
        assert (await run(customer, app, "python3 /notes.py asleep"))[-1].endswith("stopped asleep")
        await nothing_is_mounted(here)
        assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "sleeping"
        await customer.answers(hostname, "stopped asleep\n")

        # Another's, on the same node, looks for it while it is mounted.
        spy = await stranger.create("spy")
        await stranger.call("POST", f"/api/paas/apps/{spy}/volumes", json=volume)
        await stranger.ended(await stranger.deploy(spy, source("mine")))
        uid, listed, *found = await run(stranger, spy, _SPY)
        assert int(uid) >= 100_000
        assert listed == "notes.db"
        assert found == ["/data/notes.db", "1", "0", "not permitted"]
        assert await run(stranger, spy, "python3 /notes.py") == ["mine"]
