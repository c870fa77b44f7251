"""A container in which a builder image's own program makes an app: buildpacks, or a lifecycle.

Confined as a build's steps are: the builds' network, the order's memory and CPU, no right, and no mount but
the app's own cache, a volume that one build at a time has. Used by `docker_builder`.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import quote

import structlog
from contracts.errors import Unavailable

from builder.engine_api import EngineApi, Refused, tar_of
from builder.hints import is_ours
from builder.image_builder import Order, Say, Setup, StepFailed, Stream

log = structlog.get_logger("builder.workshop")

MIB = 1024 * 1024
# Of a build, where a core that is promised to instances has 1024: what is promised goes first.
CPU_WEIGHT = 256
CPU_PERIOD = 100_000
CACHE = "/cache"
_LONGEST_PART = 64 * 1024


@dataclass(frozen=True, slots=True)
class Workshops:
    api: EngineApi
    network: str
    prefix: str
    pids: int
    # Caches that were of use since somebody asked last.
    used: set[str] = field(default_factory=set)

    def cache_of(self, order: Order, kind: str | None) -> str | None:
        return None if order.cache is None or kind is None else f"{self._caches}{order.cache}-{kind}"

    @property
    def _caches(self) -> str:
        return f"{self.prefix}-cache-"

    @asynccontextmanager
    async def open(
        self, order: Order, setup: Setup, labels: Mapping[str, str]
    ) -> AsyncIterator["DockerWorkshop"]:
        container = await self._create(order, setup, labels)
        try:
            yield DockerWorkshop(self.api, container)
        finally:
            await asyncio.shield(self._remove(container))

    async def _create(self, order: Order, setup: Setup, labels: Mapping[str, str]) -> str:
        memory = order.memory_mb * MIB
        host: dict[str, Any] = {
            "NetworkMode": self.network,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Memory": memory,
            "MemorySwap": memory,
            # Not as a number of CPUs: of those the engine takes no more than the machine has.
            "CpuPeriod": CPU_PERIOD,
            "CpuQuota": order.cpu_millis * CPU_PERIOD // 1000,
            "CpuShares": CPU_WEIGHT,
            "PidsLimit": self.pids,
            "Ulimits": [{"Name": "fsize", "Soft": order.disk_mb * MIB, "Hard": order.disk_mb * MIB}],
            "Init": True,
            # What it says is read as it says it, and nowhere kept.
            "LogConfig": {"Type": "none"},
        }
        wanted = {
            "Image": setup.image.id,
            "User": f"{setup.user}:{setup.group}",
            "Entrypoint": list(setup.command),
            "Cmd": [],
            "WorkingDir": "/",
            "Env": [f"{name}={value}" for name, value in setup.environment.items()],
            "Labels": dict(labels),
            "Healthcheck": {"Test": ["NONE"]},
            "HostConfig": host,
        }
        volume = self.cache_of(order, setup.cache)
        if volume is not None:
            own = {"Type": "volume", "Source": volume, "Target": CACHE, "VolumeOptions": {"NoCopy": True}}
            try:
                # The name is the lock: an app's cache is never written by two builds at once.
                made = await self.api.call(
                    "POST",
                    "/containers/create",
                    {"name": volume},
                    body=wanted | {"HostConfig": host | {"Mounts": [own]}},
                )
            except Refused as error:
                if error.status != 409:
                    raise
                log.info("a build goes without its cache, which another one has", cache=volume)
            else:
                self.used.add(volume)
                return str(made["Id"])
        return str((await self.api.call("POST", "/containers/create", body=wanted))["Id"])

    async def _remove(self, container: str) -> None:
        try:
            await self.api.call("DELETE", f"/containers/{container}", {"force": True, "v": True})
        except (Refused, Unavailable) as error:
            log.warning("a workshop stays for the janitor", container=container, error=str(error))

    async def recall(self) -> None:
        """Caches of builders before this one: they have their time from now on."""
        found = await self.api.call("GET", "/volumes", {"filters": {"name": [self._caches]}})
        self.used.update(volume["Name"] for volume in found["Volumes"] or () if self.is_cache(volume["Name"]))

    def is_cache(self, name: str) -> bool:
        return name.startswith(self._caches)

    async def weigh(self, volumes: Collection[str]) -> dict[str, int]:
        usage = await self.api.call("GET", "/system/df")
        return {
            volume["Name"]: max(0, int(volume["UsageData"]["Size"]))
            for volume in usage["Volumes"] or ()
            if volume["Name"] in volumes
        }

    async def forget(self, volume: str) -> bool:
        """False: a build is using it."""
        try:
            await self.api.call("DELETE", f"/volumes/{quote(volume)}")
        except Refused as error:
            if error.status == 409:
                return False
            if error.status != 404:
                raise
        return True


@dataclass(frozen=True, slots=True)
class DockerWorkshop:
    api: EngineApi
    container: str

    async def put(self, files: BinaryIO) -> None:
        path = f"/containers/{self.container}/archive"
        async with self.api.stream("PUT", path, {"path": "/"}, tar_of(files)) as chunks:
            async for _ in chunks:
                continue

    async def work(self, say: Say) -> int:
        # Listening begins before there is anything to hear, and who listens slowly slows down who speaks.
        query = {"stream": True, "stdout": True, "stderr": True}
        async with self.api.stream("POST", f"/containers/{self.container}/attach", query) as chunks:
            await self.api.call("POST", f"/containers/{self.container}/start")
            async for stream, line in lines(chunks):
                await say(stream, line)
        code = int((await self.api.call("POST", f"/containers/{self.container}/wait"))["StatusCode"])
        if code == 0:
            return 0
        state = (await self.api.call("GET", f"/containers/{self.container}/json"))["State"]
        return 137 if state["OOMKilled"] else code

    async def take(self, path: str, into: BinaryIO, largest: int) -> bool:
        size = 0
        try:
            async with self.api.stream(
                "GET", f"/containers/{self.container}/archive", {"path": path}
            ) as chunks:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > largest:
                        raise StepFailed("image", f"{path} is larger than {largest // MIB} MiB in all")
                    await asyncio.to_thread(into.write, chunk)
        except Refused as error:
            if error.status != 404:
                raise
            return False
        await asyncio.to_thread(into.seek, 0)
        return True


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[tuple[Stream, str]]:
    """The engine's multiplexed output: frames of one stream each, with a header of eight bytes."""
    data = bytearray()
    rest: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    async for chunk in chunks:
        data += chunk
        begin = 0
        while len(data) - begin >= 8:
            end = begin + 8 + int.from_bytes(data[begin + 4 : begin + 8], "big")
            if end > len(data):
                break
            stream: Stream = "stderr" if data[begin] == 2 else "stdout"
            *whole, part = (rest[stream] + data[begin + 8 : end]).split(b"\n")
            if len(part) > _LONGEST_PART:
                whole, part = [*whole, part], b""
            rest[stream] = bytes(part)
            begin = end
            for line in whole:
                yield stream, line.decode(errors="replace").removesuffix("\r")
        del data[:begin]
    for stream, part in rest.items():
        if part:
            yield stream, part.decode(errors="replace")


async def load(api: EngineApi, archive: BinaryIO, image: str) -> None:
    """The engine takes no image whose layers are not what its configuration says."""
    said, words = b"", ""
    try:
        async with api.stream("POST", "/images/load", {"quiet": True}, tar_of(archive)) as chunks:
            async for chunk in chunks:
                said = (said + chunk)[-4096:]
        words = said.decode(errors="replace").strip()
        await api.call("GET", f"/images/{image}/json")
    except Refused as error:
        words = words if error.status == 404 else error.words
        if is_ours(words):
            raise
        raise StepFailed("image", f"the engine did not take the image: {words}") from error
