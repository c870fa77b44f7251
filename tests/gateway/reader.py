"""An SSE client as browsers are, and a deployment with something to say."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from contracts.reports import BuildLog

from tests.customer import Customer
from tests.gateway.world import SOURCE, World, failed, finished, started
from tests.harness import eventually


@dataclass
class Reader:
    """It remembers the last id it saw."""

    customer: Customer
    deployment: str
    seen: list[int] = field(default_factory=list)
    events: list[tuple[str, Any]] = field(default_factory=list)
    comments: int = 0

    def __post_init__(self) -> None:
        self.path = f"/api/paas/deployments/{self.deployment}/log/stream"

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]

    async def read(self, until: Any = None) -> None:
        headers = dict(self.customer.headers)
        if self.seen:
            headers["Last-Event-ID"] = str(self.seen[-1])
        async with self.customer.client.stream("GET", self.path, headers=headers, timeout=20) as response:
            assert response.status_code == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["cache-control"] == "no-store"
            async for block in blocks(response):
                if "data" not in block:
                    self.comments += ":" in block
                    continue
                kind, data = block["event"], json.loads(block["data"])
                if kind == "log":
                    assert int(block["id"]) == data["sequence"]
                    self.seen.append(data["sequence"])
                else:
                    self.events.append((kind, data))
                if until is not None and until(self):
                    return

    @asynccontextmanager
    async def reading(self) -> AsyncIterator["asyncio.Task[None]"]:
        task = asyncio.create_task(self.read())
        try:
            yield task
            async with asyncio.timeout(30):
                await task
        finally:
            task.cancel()


async def blocks(response: httpx.Response) -> AsyncIterator[dict[str, str]]:
    block: dict[str, str] = {}
    async for line in response.aiter_lines():
        if not line and block:
            yield block
            block = {}
        elif line:
            name, _, value = line.partition(":")
            block[name or ":"] = value.strip()


async def building(here: World, customer: Customer, name: str) -> str:
    deployment = await customer.deploy(await customer.create(name), SOURCE)
    await here.say(started(await here.requested(deployment)))
    return deployment


async def saw(reader: Reader, last: int) -> None:
    async def look() -> bool:
        return bool(reader.seen) and reader.seen[-1] >= last

    await eventually(look, what=f"line {last}")


async def end(here: World, deployment: str) -> None:
    await here.say(finished(await here.requested(deployment), failed(message="boom")))


async def subscriptions(here: World) -> int:
    client = here.host.runtime.bus.client
    return sum(s.subject.startswith(BuildLog.name) for s in client._subs.values())
