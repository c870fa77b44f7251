"""From source to the first 200, against the same by hand; and from a ready image, against `docker run`.

By hand is `docker build`, then `docker run` with the same limits and a published port, polled alike. Both
arms build a version nobody has built before, of the same app, on the same cached base. The platform runs as
`make up` runs it: every service in one process, Traefik in front, the machine's engine behind.
"""

import asyncio
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from runtime.telemetry import configure_logging

from bench.pairs import at_most, in_turn, ratio, report
from bench.scratch import scratch
from tests.customer import Customer, archive
from tests.harness import free_port
from tests.platform import ADMIN, platform
from tests.ports.web import get

ROUNDS = 11
POLL = 0.01
PATIENCE = 60.0
# What the arm before has left to clear away counts for neither.
SETTLE = 2.0

_DOCKERFILE = 'FROM berth/python:3.11\nCOPY app.py /app.py\nCMD ["python3", "/app.py"]\n'
_APP = """\
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"VERSION"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Hello).serve_forever()
"""

_versions = itertools.count(1)


def source() -> tuple[str, dict[str, str]]:
    """A version of the app that has never been built."""
    version = f"version {next(_versions)} of {time.time_ns()}"
    return version, {"Dockerfile": _DOCKERFILE, "app.py": _APP.replace("VERSION", version)}


async def first_answer(port: int, hostname: str, text: str) -> None:
    """Whoever asks must cost little: it shares the machine with what it waits for."""
    async with asyncio.timeout(PATIENCE):
        while True:
            if await get(port, hostname) == (200, text):
                return
            await asyncio.sleep(POLL)


@dataclass
class Bench:
    customer: Customer
    app: str
    port: int
    hostname: str
    hand: "ByHand"
    version: str = ""

    async def deploy(self) -> float:
        self.version, files = source()
        packed = archive(files)
        await asyncio.sleep(SETTLE)
        began = time.perf_counter()
        await self.customer.deploy(self.app, packed)
        await self._answers()
        return time.perf_counter() - began

    async def start(self) -> float:
        """A stopped app, its image ready."""
        await self.customer.call("POST", f"/api/paas/apps/{self.app}/stop")
        await self.customer.status(self.app, "stopped")
        await self.customer.silent(self.hostname)
        await asyncio.sleep(SETTLE)
        began = time.perf_counter()
        await self.customer.call("POST", f"/api/paas/apps/{self.app}/start")
        await self._answers()
        return time.perf_counter() - began

    async def _answers(self) -> None:
        await first_answer(self.port, self.hostname, self.version)


@dataclass
class ByHand:
    limits: dict[str, int]
    tags: list[str] = field(default_factory=list)
    version: str = ""

    async def deploy(self) -> float:
        version, files = source()
        tag = f"berth-bench:{len(self.tags)}"
        self.tags.append(tag)
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text)
            await asyncio.sleep(SETTLE)
            began = time.perf_counter()
            await run("docker", "build", "--quiet", "--tag", tag, folder)
            container = await self._run(tag, version)
        seconds = time.perf_counter() - began
        await run("docker", "rm", "--force", container)
        self.version = version
        return seconds

    async def start(self) -> float:
        await asyncio.sleep(SETTLE)
        began = time.perf_counter()
        container = await self._run(self.tags[-1], self.version)
        seconds = time.perf_counter() - began
        await run("docker", "rm", "--force", container)
        return seconds

    async def _run(self, tag: str, version: str) -> str:
        port = free_port()
        memory = f"{self.limits['memory_mb']}m"
        container = await run(
            *("docker", "run", "--detach", "--init", "--env", "PORT=8080"),
            *("--memory", memory, "--memory-swap", memory, "--cpus", str(self.limits["cpu_millis"] / 1000)),
            *("--publish", f"127.0.0.1:{port}:8080", tag),
        )
        await first_answer(port, "localhost", version)
        return container

    def clean(self) -> None:
        subprocess.run(["docker", "rmi", "--force", *self.tags], check=False, capture_output=True)


async def run(*words: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}: {err.decode()}")
    return out.decode().strip()


@asynccontextmanager
async def opened() -> AsyncIterator[Bench]:
    with scratch() as folder:
        async with platform(folder, "bench") as here, here.customer() as customer:
            await customer.log_in(*ADMIN)
            await customer.found("Bench")
            credits = f"/api/admin/organizations/{customer.organization}/credits"
            await customer.call("POST", credits, json={"amount": "100"})
            await asyncio.sleep(1)
            plans = (await customer.call("GET", "/api/paas/plans"))["plans"]
            limits = next(plan["limits"] for plan in plans if plan["name"] == "small")
            hand = ByHand(limits)
            app, view = await customer.live("bench", archive(source()[1]))
            try:
                yield Bench(customer, app, here.traefik.port, str(httpx.URL(view["url"]).host), hand)
            finally:
                hand.clean()


async def main() -> int:
    configure_logging("warning")
    async with opened() as bench:
        # Both arms once before anything counts: whatever is loaded the first time is loaded.
        await bench.deploy()
        await bench.hand.deploy()
        ours, by_hand = await in_turn(bench.deploy, bench.hand.deploy, rounds=ROUNDS)
        started, ran = await in_turn(bench.start, bench.hand.start, rounds=ROUNDS)
    deploy, deploy_note = ratio(ours, by_hand)
    start, start_note = ratio(started, ran)
    return report(
        [
            at_most("deploy.source_to_first_answer", deploy, 1.3, deploy_note),
            at_most("deploy.image_to_first_answer", start, 1.5, start_note),
        ]
    )


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
