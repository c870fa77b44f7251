"""What the steps of a build may use of the machine, where the engine's classic builder has no limit for it.

Processes: each container gets a limit as it joins the builds' network. Disk: what its containers, their
volumes and its new layers take is measured a few times a second, and a build that takes too much is ended;
between two looks it can write more, so beside it the kernel bounds every single file, and no build goes on
when the machine's disk is nearly full. Used by `docker_builder` around whatever runs there.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from contracts.errors import ProviderFailed, Unavailable
from runtime.clock import Clock

from builder.engine_api import EngineApi, Refused
from builder.handing import hand
from builder.image_builder import Order, StepFailed

log = structlog.get_logger("builder.steps")

MIB = 1024 * 1024
ATTEMPT = "berth.attempt"
_LOOK = 0.3
# Whose disk it was that shrank, is asked as soon as it shrank by this part of what a build may take.
_SOON = 4
# Measuring takes no more than this part of a core.
_SHARE = 0.2
# A disk has no room either when it can have no more files.
_LEAST_FILES = 0.02


class Steps:
    def __init__(self, api: EngineApi, clock: Clock, *, network: str, pids: int, least_free_mb: int) -> None:
        """`least_free_mb`: of the engine's disk, what builds leave alone."""
        self.api = api
        self.clock = clock
        self.pids = pids
        self._network = network
        self._least_free = least_free_mb
        self._folder: Path | None = None

    @asynccontextmanager
    async def watched(
        self,
        order: Order,
        layers: Callable[[], Collection[str]] = frozenset,
        secrets: Mapping[str, str] | None = None,
    ) -> AsyncIterator[None]:
        """`layers`: those that are new. What is too much ends the block with the reason. `secrets`
        are handed to each step of this build."""
        watch = _Watch(self, order, layers, secrets or {})
        filters = {"type": ["network"], "event": ["connect"], "network": [self._network]}
        try:
            async with (
                asyncio.timeout(None) as limit,
                self.api.stream("GET", "/events", {"filters": filters}) as chunks,
            ):
                watching = [
                    asyncio.create_task(watch.join(chunks), name="limit processes"),
                    asyncio.create_task(watch.measure(limit), name="limit disk"),
                ]
                try:
                    yield
                finally:
                    for task in watching:
                        task.cancel()
                    for outcome in await asyncio.gather(*watching, return_exceptions=True):
                        if isinstance(outcome, Exception):
                            log.warning("steps of a build ran without a limit", error=str(outcome))
        except (TimeoutError, Refused) as error:
            # Its container is gone, or it is about to hear of it.
            if watch.failure is None:
                raise
            raise watch.failure from error
        if watch.failure is not None:
            # The end of its step was noticed first.
            raise watch.failure

    async def full(self) -> str | None:
        """Why nothing may be built now."""
        return (await self.room()).lacking

    async def room(self) -> "Room":
        """The engine's disk is looked at where it can be seen from here: its folder, or, in a container of
        the same engine, the ground under one's own feet."""
        if self._folder is None:
            self._folder = Path(str((await self.api.call("GET", "/info"))["DockerRootDir"]))
        found = os.statvfs(self._folder if self._folder.exists() else "/")
        free, lacking = found.f_bavail * found.f_frsize, None
        if free < self._least_free * MIB:
            lacking = f"the builder's disk has {free // MIB} MB left"
        elif found.f_files and found.f_favail < found.f_files * _LEAST_FILES:
            lacking = "the builder's disk has no room for more files"
        return Room(free, lacking)


@dataclass(frozen=True, slots=True)
class Room:
    """What is free of the disk, in bytes, and why that is too little."""

    free: int
    lacking: str | None


@dataclass(slots=True)
class _Watch:
    steps: Steps
    order: Order
    layers: Callable[[], Collection[str]]
    secrets: Mapping[str, str]
    failure: Exception | None = None
    # The most that was free while this was built.
    _free: int = 0
    _containers: set[str] = field(default_factory=set)
    # Container -> what it took when it was last looked at, also of those that have ended.
    _sizes: dict[str, int] = field(default_factory=dict)
    # Containers that could not be measured when they were last looked at.
    _odd: set[str] = field(default_factory=set)
    # Layer -> what it adds to the one it is made on.
    _known: dict[str, int] = field(default_factory=dict)

    async def join(self, chunks: AsyncIterator[bytes]) -> None:
        rest = b""
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                await self._joined(json.loads(line)["Actor"]["Attributes"]["container"])

    async def _joined(self, container: str) -> None:
        api = self.steps.api
        try:
            await api.call("POST", f"/containers/{container}/update", body={"PidsLimit": self.steps.pids})
            if self._is_ours(await api.call("GET", f"/containers/{container}/json")):
                self._containers.add(container)
                if self.secrets:
                    await hand(api, self.steps.clock, container, self.secrets)
        except (Refused, Unavailable) as error:
            log.debug("a step ended before it was limited", container=container, error=str(error))

    def _is_ours(self, found: dict[str, Any]) -> bool:
        hosts = found["HostConfig"]["ExtraHosts"] or ()
        labels = found["Config"]["Labels"] or {}
        return sign(self.order) in hosts or labels.get(ATTEMPT) == self.order.attempt

    async def measure(self, limit: asyncio.Timeout) -> None:
        clock = self.steps.clock
        pause = _LOOK
        with contextlib.suppress(Refused, Unavailable):
            # Else it is known by the first look.
            self._free = (await self.steps.room()).free
        while self.failure is None:
            await clock.sleep(pause)
            began = clock.monotonic()
            try:
                self.failure = await self._judged()
            except (Refused, Unavailable) as error:
                log.debug("a build could not be measured now", build=self.order.build, error=str(error))
            pause = max(_LOOK, (clock.monotonic() - began) / _SHARE)
        for container in tuple(self._containers):
            try:
                await self.steps.api.call("DELETE", f"/containers/{container}", {"force": True, "v": True})
            except (Refused, Unavailable) as error:
                log.info("a step is left to the engine", container=container, error=str(error))
        limit.reschedule(asyncio.get_running_loop().time())

    async def _judged(self) -> Exception | None:
        room = await self.steps.room()
        if room.lacking is not None:
            return ProviderFailed(room.lacking)
        self._free = max(self._free, room.free)
        if self._free - room.free < self.order.disk_mb * MIB // _SOON:
            # All who write here together have written less: the engine, which has to count, is left alone.
            return None
        running = 0
        for container in tuple(self._containers):
            self._sizes[container] = size = await self._of_container(container)
            running += size
        # Which layers there are, the build's own output says, and a step may say anything in between; what
        # its containers took, it cannot hide, unless they end between two looks.
        used = max(running + await self._of_layers(), sum(self._sizes.values()))
        if used <= self.order.disk_mb * MIB:
            return None
        return StepFailed(
            "build",
            f"the build used more than its {self.order.disk_mb} MB of disk",
            hint="Write less, or leave out what the image does not need; a larger plan has more disk.",
        )

    async def _of_container(self, container: str) -> int:
        api = self.steps.api
        try:
            found = await api.call("GET", f"/containers/{container}/json", {"size": True})
        except Refused:
            self._containers.discard(container)
            return self._sizes.get(container, 0)
        sizes = [int(found.get("SizeRw") or 0)]
        volumes = {mount["Name"] for mount in found["Mounts"] if mount["Type"] == "volume"}
        if volumes:
            usage = await api.call("GET", "/system/df")
            sizes += [
                int(volume["UsageData"]["Size"])
                for volume in usage["Volumes"] or ()
                if volume["Name"] in volumes
            ]
        if min(sizes) >= 0:
            self._odd.discard(container)
            return sum(sizes)
        # The engine could not walk through it: it is just going away, or the next look finds the same.
        if container not in self._odd:
            self._odd.add(container)
            return self._sizes.get(container, 0)
        return self.order.disk_mb * MIB + 1

    async def _of_layers(self) -> int:
        for layer in set(self.layers()) - self._known.keys():
            found = await self._image(layer)
            # A step may print what looks like one.
            parent = await self._image(found["Parent"]) if found and found["Parent"] else None
            self._known[layer] = int(found["Size"]) - int(parent["Size"]) if found and parent else 0
        return sum(self._known.values())

    async def _image(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self.steps.api.call("GET", f"/images/{name}/json")
        except Refused:
            return None
        return found


def sign(order: Order) -> str:
    """A host that only this build's steps know: the one mark the classic builder puts on a container."""
    return f"{order.attempt}.build:127.0.0.1"
