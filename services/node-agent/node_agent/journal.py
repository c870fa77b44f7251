"""What this node has to tell the platform: on disk before it counts as said, sent in order, for ever.

An event's id is made of what it says, so twice is the same as once. NATS may be away for hours.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from contracts.events import BY_NAME, Event
from contracts.model import Model

from node_agent.shelf import Shelf

log = structlog.get_logger("node-agent.journal")


class Entry(Model):
    name: str
    event: str


class Journal:
    def __init__(self, folder: Path) -> None:
        self._entries = Shelf(folder, Entry)
        self._next = 0
        self._appending = asyncio.Lock()
        self._more = asyncio.Event()

    def open(self) -> None:
        self._entries.open()
        self._next = max((int(key) for key, _ in self._entries), default=0) + 1

    def __len__(self) -> int:
        return len(self._entries)

    async def append(self, event: Event) -> None:
        """On disk when it returns."""
        async with self._appending:
            key = f"{self._next:012}"
            self._next += 1
            await self._entries.put(key, Entry(name=event.name, event=event.model_dump_json()))
        self._more.set()

    async def relay(self, publish: Callable[[Event], Awaitable[None]]) -> None:
        """Never ends but by the error of `publish`; the event that failed is the next one again."""
        while True:
            self._more.clear()
            for key, entry in self._entries:
                await publish(BY_NAME[entry.name].model_validate_json(entry.event))
                await self._entries.remove(key)
            if not len(self._entries):
                await self._more.wait()
