"""Brings images to this node: one pull at a time for each, however many instances wait for it."""

import asyncio
from collections.abc import Awaitable, Callable

from contracts.errors import BerthError, ProviderFailed
from runtime.clock import Clock
from runtime.tasks import end

from node_agent.engine import ContainerEngine, Credentials

# Between the tries; a registry may be restarting.
_PAUSES = (1.0, 2.0)

# What opens the registry for an image, asked for each pull.
Permit = Callable[[str], Awaitable[Credentials | None]]


class Images:
    def __init__(self, engine: ContainerEngine, permit: Permit, clock: Clock) -> None:
        self._engine = engine
        self._permit = permit
        self._clock = clock
        self._pulls: dict[str, asyncio.Task[None]] = {}

    async def ensure(self, image: str) -> None:
        """Never asks a registry for what is here."""
        if await self._engine.image_present(image):
            return
        pull = self._pulls.get(image)
        if pull is None:
            pull = self._pulls[image] = asyncio.create_task(self._pull(image), name=f"pull {image}")
            pull.add_done_callback(lambda _: self._pulls.pop(image, None))
        # One who stops waiting does not stop it for the others.
        await asyncio.shield(pull)

    async def close(self) -> None:
        await end(self._pulls.values())

    async def _pull(self, image: str) -> None:
        for pause in _PAUSES:
            try:
                await self._engine.pull(image, await self._opened(image))
                return
            except ProviderFailed:
                await self._clock.sleep(pause)
        await self._engine.pull(image, await self._opened(image))

    async def _opened(self, image: str) -> Credentials | None:
        try:
            return await self._permit(image)
        except BerthError as error:
            raise ProviderFailed(f"the image may not be pulled: {error.message}") from error
