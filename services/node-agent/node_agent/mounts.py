"""A workload's volumes as its instances and jobs have them: mounted for the first, let go of by the last.

Invariant: who begins on the data is looked at, given what he needs and put into the engine while nobody lets
go of it, gives it away or lets another begin; so the engine knows who has it, also after a crash. Nothing is
taken from under a job: it is ended first. Called by the keepers, by jobs, and by whoever gives data away.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from contracts.errors import ProviderFailed
from contracts.model import Model
from contracts.workload import NodeWorkload, Volume

from node_agent.departures import Departures
from node_agent.desired import Desired, Record
from node_agent.engine import ContainerEngine, Mount
from node_agent.homes import Homes
from node_agent.volumes import Volumes

MOVED = "its app moved to another node"


class Held(Model):
    """What a job has of its workload's data: which, and how large."""

    home: int
    volumes: tuple[Volume, ...] = ()


class Holders(Protocol):
    def holding(self, workload: str) -> dict[str, Held]:
        """The jobs that have volumes of it, or had them until a moment ago."""
        ...

    def stop(self, job: str, words: str) -> None: ...

    async def ended(self, jobs: Collection[str]) -> None:
        """Returns when nothing of these is in the engine any more."""
        ...


def settled(record: Record | None, told: NodeWorkload) -> bool:
    """This node knows what a job was placed by, and is not about to put other volumes in the place of those
    that are there."""
    if record is None or record.desired.revision < told.revision:
        return False
    live = record.live
    return not record.rolling_out or live is None or live.spec.volumes == record.desired.spec.volumes


def withdrawn(held: Held, record: Record) -> str | None:
    """Why a job may not have these, or not any more."""
    desired = record.desired
    if desired.spec.state == "deleted":
        return "its app was deleted"
    if desired.moving or desired.home > held.home:
        return MOVED
    sizes = {volume.id: volume.size_mb for volume in in_place(record)}
    for volume in held.volumes:
        if volume.id not in sizes:
            return f"its volume {volume.name} was taken away"
        if sizes[volume.id] > volume.size_mb:
            return f"its volume {volume.name} grows"
    return None


def in_place(record: Record) -> tuple[Volume, ...]:
    """The volumes of what runs here, or is to run."""
    return (record.wanted or record.desired).spec.volumes


class Mounts:
    def __init__(
        self,
        engine: ContainerEngine,
        volumes: Volumes,
        homes: Homes,
        desired: Desired,
        departures: Departures,
    ) -> None:
        self._engine = engine
        self._volumes = volumes
        self._homes = homes
        self._desired = desired
        self._departures = departures
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._jobs: Holders | None = None

    def lend(self, jobs: Holders) -> None:
        """They have volumes too."""
        self._jobs = jobs

    def alone(self, workload: str) -> AbstractAsyncContextManager[object]:
        """Nobody begins on its data or lets go of it meanwhile."""
        return self._locks[workload]

    async def attach(self, wanted: NodeWorkload) -> tuple[Mount, ...]:
        """To be `alone` from here on until who asks is in the engine."""
        spec = wanted.spec
        await self._homes.enter(wanted)
        self.check(wanted)
        keys = self._homes.keys(wanted)
        return tuple(
            [
                Mount(
                    str(await self._volumes.attach(volume, spec.id, spec.uid, keys.get(volume.id))),
                    volume.path,
                )
                for volume in spec.volumes
            ]
        )

    def check(self, wanted: NodeWorkload) -> None:
        """A disk that is not mounted, or a new one, must not look like the beginning: an empty volume would
        take the place of the last copy of what was in it."""
        here = self._volumes.of(wanted.spec.id)
        for volume in wanted.spec.volumes:
            if volume.id in wanted.made and volume.id not in here:
                raise ProviderFailed(f"its volume {volume.name} is not on its node any more")

    async def let_go(self, workload: str) -> None:
        """Unless somebody has them."""
        async with self._locks[workload]:
            if await self._engine.instances(workload) or await self._lent(workload):
                return
            for volume in self._volumes.of(workload):
                await self._volumes.detach(volume)

    async def withdraw(self, record: Record) -> None:
        """The jobs that may not have them any more have ended when this returns."""
        workload = record.desired.spec.id
        if self._jobs is None:
            return
        async with self._locks[workload]:
            held = self._jobs.holding(workload)
            ending = {job: why for job in held if (why := withdrawn(held[job], record)) is not None}
            for job, why in ending.items():
                self._jobs.stop(job, why)
        await self._jobs.ended(ending)

    async def keep(self, record: Record, *, running: bool) -> None:
        """What no specification names any more is given up; what nothing runs on is not left mounted.
        `running`: it has instances here, those that leave aside."""
        desired, workload = record.desired, record.desired.spec.id
        await self.withdraw(record)
        if not running and self._homes.awaited(desired):
            # Also of an app that is stopped: it may move on before it runs.
            async with self._locks[workload]:
                await self._homes.enter(desired)
        there = self._volumes.of(workload)
        if not there:
            return
        if self._homes.stale(desired):
            if not running:
                await self._departures.ended(workload)
                await self._leave(workload)
            return
        if running and there <= _named(record):
            return
        await self._departures.ended(workload)
        async with self._locks[workload]:
            # Asked again: a job may have begun on one that is new.
            for volume in self._volumes.of(workload) - _named(self._desired[workload]):
                await self._volumes.give_up(volume)
        if not running:
            await self.let_go(workload)

    async def _leave(self, workload: str) -> None:
        async with self._locks[workload]:
            # Asked again: a job may have begun on the copy that has become the data.
            desired = self._desired[workload].desired
            if self._homes.stale(desired):
                await self._homes.leave(desired)

    async def _lent(self, workload: str) -> bool:
        """To a job; one without a container has them no more, or not yet."""
        held = {} if self._jobs is None else self._jobs.holding(workload)
        return bool(held) and any(found.identity.job in held for found in await self._engine.jobs())


def _named(record: Record) -> set[str]:
    if record.desired.spec.state == "deleted":
        return set()
    known = [record.desired.spec, *([record.live.spec] if record.live else [])]
    return {volume.id for spec in known for volume in spec.volumes}
