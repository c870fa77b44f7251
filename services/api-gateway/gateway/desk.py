"""What the routes work with: the one thing the application hands to every request."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from runtime.bus import Bus
from runtime.clock import Clock
from runtime.store import Store
from runtime.tasks import end

from gateway.names import Names
from gateway.passwords import Passwords
from gateway.settings import GatewaySettings
from gateway.tokens import Tokens


@dataclass(frozen=True)
class Desk:
    settings: GatewaySettings
    currency: str
    clock: Clock
    store: Store
    bus: Bus
    tokens: Tokens
    passwords: Passwords
    names: Names
    # Purpose -> the key of what is sealed for it.
    seal_key: Callable[[str], str]
    # Few archives are looked through at once: it takes a core each.
    inspections: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))
    # Set when the process stops: streams end then, and their clients come again elsewhere.
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    # Work that goes on when its request has ended.
    _begun: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def end(self) -> None:
        await end(self._begun)
        self.names.end()
