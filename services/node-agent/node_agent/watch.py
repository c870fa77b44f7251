"""Keeps asking the admitted instances of a workload whether they still answer.

Too many failures in a row take an instance out of the routes and mark it as broken; an answer brings it back.
Called by the keeper of the workload, which is told of every change.
"""

import asyncio
from collections.abc import Awaitable, Callable

from contracts.errors import Unavailable
from runtime.clock import Clock

from node_agent.engine import Instance

_FIRST_PAUSE = 0.05


class Watch:
    def __init__(
        self,
        clock: Clock,
        examine: Callable[[Instance], Awaitable[str | None]],
        changed: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._examine = examine
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ready: dict[str, bool] = {}
        self._broken: dict[str, str] = {}
        self._condemned: dict[str, str] = {}

    def ready(self, instance: str) -> bool:
        return self._ready.get(instance, False)

    def broken(self, instance: str) -> str | None:
        """Why it has to be replaced."""
        return self._condemned.get(instance) or self._broken.get(instance)

    def condemn(self, instance: str, why: str) -> None:
        """Whatever it answers from here on."""
        self._condemned[instance] = why
        self._changed()

    def condemned(self, instance: str) -> bool:
        return instance in self._condemned

    def is_ready(self, instance: str) -> None:
        """Somebody else has just seen it answer."""
        self._ready[instance] = True

    async def follow(self, instance: Instance) -> None:
        """From now on; returns when it has been asked for the first time."""
        identity = instance.identity
        if identity.instance in self._tasks:
            return
        if identity.instance not in self._ready:
            reason = await self._asked(instance)
            self._ready[identity.instance] = reason is None
        self._tasks[identity.instance] = asyncio.create_task(
            self._ask(instance), name=f"watch {identity.instance}"
        )

    def pause(self, instance: str) -> None:
        """It does not run at the moment: nobody is asked, and nothing is held against it."""
        task = self._tasks.pop(instance, None)
        if task is not None:
            task.cancel()
        self._ready.pop(instance, None)

    def forget(self, instance: str) -> None:
        self.pause(instance)
        self._broken.pop(instance, None)
        self._condemned.pop(instance, None)

    def followed(self) -> list[str]:
        return list(self._tasks)

    def close(self) -> None:
        for instance in self.followed():
            self.forget(instance)

    async def _ask(self, instance: Instance) -> None:
        identity = instance.identity
        check = identity.health
        # After a restart it has its start period again, and is asked often, to be routed again at once.
        starting = not self.ready(identity.instance)
        patience = self._clock.monotonic() + check.start_seconds if starting else 0.0
        pause = _FIRST_PAUSE if starting else check.interval_seconds
        failures = 0
        while True:
            await self._clock.sleep(pause)
            reason = await self._asked(instance)
            if reason is None:
                failures, patience = 0, 0.0
                pause = check.interval_seconds
                self._set(identity.instance, ready=True, broken=None)
                continue
            failures += 1
            if self._clock.monotonic() < patience:
                pause = min(pause * 1.5, check.interval_seconds)
                continue
            pause = check.interval_seconds
            if failures >= check.retries:
                words = f"{failures} checks in a row failed: {reason}"
                self._set(identity.instance, ready=False, broken=words)

    async def _asked(self, instance: Instance) -> str | None:
        try:
            return await self._examine(instance)
        except Unavailable as error:
            # The engine is away, and who is watched cannot help it.
            return None if self.ready(instance.identity.instance) else error.message

    def _set(self, instance: str, *, ready: bool, broken: str | None) -> None:
        before = self._ready.get(instance), instance in self._broken
        changed = before != (ready, broken is not None)
        self._ready[instance] = ready
        if broken is None:
            self._broken.pop(instance, None)
        else:
            self._broken.setdefault(instance, broken)
        if changed:
            self._changed()
