"""Says every few seconds what this node is, what is used of it and what runs on it: whole each time."""

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from contracts.errors import BerthError
from contracts.reports import InstanceUsage, NodeHeartbeat, RunningInstance, VolumeUse

from node_agent.engine import EngineInfo
from node_agent.machine import Machine
from node_agent.site import Site

_UNKNOWN = "unknown"
# How long a beat waits for an engine that has not answered. So long without an answer it is away; an update
# takes less.
_PATIENCE, _AWAY = 3.0, 60.0
_MIB = 1024 * 1024


class Heart:
    def __init__(
        self,
        site: Site,
        region: str,
        machine: Machine,
        healthy: Callable[[str, str], bool],
        report: Callable[[NodeHeartbeat], Awaitable[None]],
    ) -> None:
        self._site = site
        self._region = region
        self._machine = machine
        self._healthy = healthy
        self._report = report
        self._boot = uuid.uuid4().hex
        self._sequence = 0
        self._engine: EngineInfo | None = None
        self._answered_at = site.clock.monotonic()
        self._agent = version("berth-node-agent")
        # Of each instance, when it was looked at last and the CPU it had used by then.
        self._seen: dict[str, tuple[float, float]] = {}

    async def beat(self) -> None:
        if self._engine is None or self._away():
            # It may be this process that was away: the engine is asked before it is said of it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self.look()
        engine = self._engine
        self._sequence += 1
        await self._report(
            NodeHeartbeat(
                node=self._site.node,
                region=self._region,
                boot=self._boot,
                sequence=self._sequence,
                at=self._site.clock.now(),
                capacity=self._machine.capacity(),
                used=self._machine.usage(),
                engine=_UNKNOWN if engine is None else str(engine),
                engine_away=self._away(),
                architecture=None if engine is None else engine.architecture,
                runtimes=() if engine is None else engine.runtimes,
                agent=self._agent,
                instances=await self._running(),
                volumes=await self._volumes(),
            )
        )

    def _away(self) -> bool:
        return self._site.clock.monotonic() - self._answered_at > _AWAY

    async def look(self) -> None:
        """Beside the beats: the node is there, and its engine may not be, or may hang."""
        with contextlib.suppress(BerthError):
            self._engine = await self._site.engine.info()
            self._answered_at = self._site.clock.monotonic()

    async def _running(self) -> tuple[RunningInstance, ...]:
        there = [tenure.started for tenure in self._site.tenures if tenure.stopped is None]
        used = await asyncio.gather(*(self._usage(started.instance) for started in there))
        self._seen = {s.instance: self._seen[s.instance] for s in there if s.instance in self._seen}
        return tuple(
            RunningInstance(
                **started.model_dump(exclude={"id", "at", "node"}),
                healthy=self._healthy(started.workload, started.instance),
                usage=usage,
            )
            for started, usage in zip(there, used, strict=True)
        )

    async def _volumes(self) -> tuple[VolumeUse, ...]:
        return tuple(
            VolumeUse(
                volume=found.volume,
                workload=found.workload,
                used_mb=-(-found.used_bytes // _MIB),
                size_mb=found.size_bytes // _MIB,
            )
            for found in await self._site.volumes.usage()
        )

    async def _usage(self, instance: str) -> InstanceUsage | None:
        try:
            found = await self._site.engine.usage(instance)
        except BerthError:
            # It has just gone, or the engine does not answer: then nothing is known about it.
            return None
        now = self._site.clock.monotonic()
        before, had = self._seen.get(instance, (now, found.cpu_seconds))
        self._seen[instance] = now, found.cpu_seconds
        # Less than before: it was started anew in between, and all of it is since then.
        used = found.cpu_seconds - had if found.cpu_seconds >= had else found.cpu_seconds
        return InstanceUsage(
            cpu_seconds=round(found.cpu_seconds, 3),
            cpu_millis=round(1000 * used / (now - before)) if now > before else 0,
            memory_mb=found.memory_bytes // _MIB,
        )
