"""Runs one service: connects it, keeps its deliveries and loops alive, stops it gracefully."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from contracts.errors import Unavailable

from runtime.runtime import Runtime
from runtime.service import Loop, Service
from runtime.tasks import end

if TYPE_CHECKING:
    from runtime.outbox import Relay

log = structlog.get_logger("runtime.host")

LONGEST_PAUSE = 30.0
BATCH = 500


@dataclass(eq=False)
class Host:
    runtime: Runtime
    service: Service
    # Events sent, and events handled, at a time.
    batch: int = BATCH
    ready: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _relay: "Relay | None" = None

    async def start(self) -> None:
        """Returns when the service is connected and at work; waits for servers that are not there yet."""
        service, runtime = self.service, self.runtime
        if service.without_bus:
            connect = asyncio.create_task(runtime.bus.connect(with_broker=False), name=f"{service.name}.bus")
            self._tasks.append(connect)
        else:
            await runtime.bus.connect(with_broker=bool(service.answers or service.listens))
        if runtime.has_store:
            await self._start_store()
        for query, answer in service.answers.items():
            runtime.bus.answer(query, answer)
        for report, hear in service.listens.items():
            runtime.bus.listen(report, hear, service.name)
        await runtime.bus.start_broker()
        if service.on_start is not None:
            await service.on_start()
        for loop in service.loops:
            self._supervise(loop)
        self.ready = True
        log.info("ready", service=service.name)

    async def _start_store(self) -> None:
        from runtime.delivery import Delivery
        from runtime.outbox import Relay
        from runtime.streams import declare

        service, runtime = self.service, self.runtime
        store = runtime.store
        await store.open()
        await _until_available(store.ping, f"{service.name}: the database does not answer")

        async def declare_streams() -> None:
            await declare(runtime.bus.jetstream())

        await _until_available(declare_streams, f"{service.name}: streams cannot be declared")
        self._relay = Relay(service.name, store, runtime.bus, runtime.telemetry, self.batch)
        # Every commit nudges it; by itself it looks only for what a process that died has left.
        relay = Loop("relay", self._relay.send, every=5.0)
        store.on_publish(self._relay.tell)
        store.on_publish(relay.nudge)
        self._supervise(relay)
        delivery = Delivery(
            service,
            store,
            runtime.bus,
            runtime.telemetry,
            max_tries=runtime.settings.max_tries,
            batch=self.batch,
        )
        if service.handles:
            self._supervise(Loop("deliver", delivery.pull, every=None))
            self._supervise(Loop("replay", delivery.replay, every=5.0))
        self._supervise(Loop("count", delivery.count_parked, every=15.0))
        self._supervise(Loop("forget", delivery.forget_handled, every=3600.0))

    def _supervise(self, loop: Loop) -> None:
        self._tasks.append(asyncio.create_task(self._repeat(loop), name=f"{self.service.name}.{loop.name}"))

    async def _repeat(self, loop: Loop) -> None:
        pause = 0.0
        failing = False
        clock = asyncio.get_running_loop().time
        while True:
            begun = clock()
            try:
                more = await loop.work()
                if failing:
                    log.info("loop works again", service=self.service.name, loop=loop.name)
                failing, pause = False, 0.0
            except Exception as error:
                self.runtime.telemetry.loop_failures.labels(self.service.name, loop.name).inc()
                if not failing or not isinstance(error, Unavailable):
                    log.warning(
                        "loop failed",
                        service=self.service.name,
                        loop=loop.name,
                        error=str(error),
                        exc_info=None if isinstance(error, Unavailable) else error,
                    )
                failing = True
                if clock() - begun > LONGEST_PAUSE:
                    # Work that never ends has worked until now.
                    pause = 0.0
                pause = min(max(0.25, pause * 2), LONGEST_PAUSE)
                await loop.pause(pause)
                continue
            if loop.every is not None and not more:
                # Not all at the same moment: each would want a connection of its own.
                await loop.pause(loop.every * random.uniform(0.9, 1.1))

    async def stop(self) -> None:
        self.ready = False
        if self._tasks:
            await end(self._tasks, patience=1)
        if self._relay is not None:
            await self._relay.drain(3.0)
        if self.service.on_stop is not None:
            await self.service.on_stop()
        await self.runtime.bus.close()
        if self.runtime.has_store:
            await self.runtime.store.close()
        log.info("stopped", service=self.service.name)


async def _until_available(call: Any, message: str) -> None:
    pause, told = 0.2, False
    while True:
        try:
            await call()
            return
        except Exception as error:
            # Whatever is wrong (not started yet, not migrated yet, no rights yet), an operator mends it
            # outside this process and the process goes on.
            if not told:
                log.warning(message, error=str(error))
                told = True
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5.0)
