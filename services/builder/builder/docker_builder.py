"""The image builder on the Docker Engine: its classic builder, the one that confines what it runs.

BuildKit knows no limit of memory or CPU and no network of one's own; the classic builder has both and costs
0.2 s more. A build's steps run on a bridge where no container sees another, with a name that the node agent's
firewall covers. Used by the builds' loops; several builders may share one engine.
"""

import asyncio
import contextlib
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO
from urllib.parse import quote

import structlog
from contracts.credentials import RegistryLogin
from contracts.errors import ProviderFailed, Unavailable
from contracts.image_reference import ImageReference
from runtime.clock import Clock

from builder import marking
from builder.bases import Bases
from builder.build_output import BuildOutput
from builder.docker_steps import ATTEMPT, Steps, sign
from builder.docker_workshop import CPU_PERIOD, CPU_WEIGHT, Workshops, load
from builder.engine_api import EngineApi, Refused, tar_of
from builder.git_sandbox import GitSandbox
from builder.hints import is_ours
from builder.image_builder import (
    BuiltImage,
    Fetched,
    FoundImage,
    KeptImage,
    Order,
    PublishedImage,
    Repository,
    Say,
    Setup,
    Step,
    StepFailed,
    Workshop,
)
from builder.own_registry import OwnRegistry
from builder.registry import OWN, Registries, found_image, too_many_volumes

log = structlog.get_logger("builder.engine")

MIB = 1024 * 1024
PREFIX, BUILD = "berth.prefix", "berth.build"
# An app's image is known by its name alone: for a label the engine makes a step of its own, 70 ms.
# Beside it there may be the images it was built on, where only a customer's log-in opens these.
_APPS_IMAGE = re.compile(
    r"^(?P<place>.+?)(/base)?/(?P<workload>app_[0-9a-z]{26}):(?P<deployment>dep_[0-9a-z]{26})(-\d+)?$"
)
# A container of a build that no builder knows any more is not swept before it has had time to end by itself.
_ABANDONED = timedelta(minutes=10)
# How long a registry is given to say whether it has an image.
_ID = "sha256:"
_REGISTRY_SECONDS = 4.0
# What the last step of a stopped build is given to leave the network.
_LEAVING = (0.0, 0.5, 1.0)


class DockerBuilder:
    def __init__(
        self,
        api: EngineApi,
        clock: Clock,
        *,
        prefix: str,
        pids: int,
        git_image: str,
        git_seconds: float,
        build_seconds: float,
        source_bytes: int,
        ca_bundle: bytes | None,
        registry: OwnRegistry | None,
        least_free_mb: int,
        allow_private_registry: bool = False,
    ) -> None:
        self._api = api
        self._clock = clock
        self._prefix = prefix
        self._registry = registry
        own = None if registry is None else registry.address
        self._registries = Registries(api, own, allow_private_registry)
        self._bases = Bases(api, clock, self._registries, prefix)
        self._longest = timedelta(seconds=build_seconds)
        self._layers: set[str] = set()
        self._engine: str | None = None
        self.network = f"{prefix}-build"
        self._steps = Steps(api, clock, network=self.network, pids=pids, least_free_mb=least_free_mb)
        self._git = GitSandbox(
            api,
            network=self.network,
            image=git_image,
            seconds=git_seconds,
            pids=pids,
            largest=source_bytes,
            ca_bundle=ca_bundle,
        )
        self._workshops = Workshops(api, network=self.network, prefix=prefix, pids=pids)
        self._recalled = False

    # --- building ----------------------------------------------------------------------------------

    async def fetch(self, order: Order, repository: Repository, into: BinaryIO, say: Say) -> Fetched:
        await self.ensure_network()
        labels = {PREFIX: self._prefix, BUILD: order.build, ATTEMPT: order.attempt}
        return await self._git.fetch(labels, repository, into, say)

    async def pull(
        self, order: Order, reference: ImageReference, login: RegistryLogin | None, say: Say
    ) -> BuiltImage:
        own = (f"{self._prefix}/{order.workload}", order.deployment)
        return await self._registries.pull(reference, login, own, say, largest=order.disk_mb * MIB)

    async def build(
        self,
        order: Order,
        context: BinaryIO,
        dockerfile: str,
        bases: Collection[str],
        say: Say,
        *,
        target: str | None = None,
        arguments: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
        login: RegistryLogin | None = None,
    ) -> BuiltImage:
        own, triggered = await self._bases.private(order, bases, login, say)
        _, *triggering = await asyncio.gather(
            self.ensure_network(), *(self._bases.admit(base, say) for base in bases if base not in own)
        )
        memory = order.memory_mb * MIB
        query = {
            "dockerfile": dockerfile,
            "rm": True,
            "forcerm": True,
            "memory": memory,
            "memswap": memory,
            "cpuperiod": CPU_PERIOD,
            "cpuquota": order.cpu_millis * CPU_PERIOD // 1000,
            "cpushares": CPU_WEIGHT,
            "networkmode": self.network,
            "extrahosts": sign(order),
            "ulimits": [{"Name": "fsize", "Soft": order.disk_mb * MIB, "Hard": order.disk_mb * MIB}],
            "target": target,
            "buildargs": dict(arguments or {}),
            # What a base image triggers runs before the mark that keeps caches apart.
            "nocache": order.cache is None or triggered or any(triggering),
            # Pruning what has no name does not take a release away.
            "t": f"{self._prefix}/{order.workload}:{order.deployment}",
        }
        output = BuildOutput()
        if order.cache is not None or own:
            marking_ = marking.Marking(order.cache, own, dict(arguments or {}))
            marks = await asyncio.to_thread(marking_.into, context, dockerfile)
            output = BuildOutput(marking_.mark, marks, {name: base for base, name in own.items()})
        try:
            async with (
                self._steps.watched(order, lambda: output.made, secrets),
                self._api.stream("POST", "/build", query, tar_of(context)) as chunks,
            ):
                async for chunk in chunks:
                    for stream, text in output.feed(chunk):
                        await say(stream, text)
            for stream, text in output.end():
                await say(stream, text)
        except Refused as error:
            # Before the first step: it could not read the Dockerfile, or does not find it.
            output.error = error.words
        except BaseException:
            await asyncio.shield(self._end_step(output.container))
            raise
        finally:
            self._layers |= output.layers
        if output.error is not None or output.image is None:
            raise _failed(output)
        found = await self._taken(output.image, "build")
        ports = {int(port.partition("/")[0]) for port in found["Config"].get("ExposedPorts") or {}}
        return BuiltImage(output.image, found["Size"], tuple(sorted(ports)))

    async def exists(self, reference: str) -> bool | None:
        try:
            async with asyncio.timeout(_REGISTRY_SECONDS):
                if await found_image(self._api, reference) is not None:
                    return True
                if reference.startswith(_ID):
                    # No registry has heard of it.
                    return False
                if reference.startswith(OWN):
                    return await self._bases.making(reference)
                await self._api.call("GET", f"/distribution/{quote(reference)}/json")
                return True
        except Refused as error:
            # The engine's own word for a registry that could not be asked is 500.
            return False if error.status in (401, 403, 404) else None
        except (Unavailable, TimeoutError):
            return None

    async def find(
        self,
        order: Order,
        reference: str,
        say: Say,
        *,
        trusted: bool = False,
        login: RegistryLogin | None = None,
    ) -> FoundImage:
        own, _ = await self._bases.private(order, (reference,), login, say)
        if not own:
            await self._bases.admit(reference, say, trusted=trusted)
        found = await found_image(self._api, own.get(reference, reference))
        if found is None:
            raise ProviderFailed(f"the image {reference} went away")
        return FoundImage(
            found["Id"], found["Config"], tuple(found["RootFS"]["Layers"]), found["Architecture"], found["Os"]
        )

    @contextlib.asynccontextmanager
    async def workshop(self, order: Order, setup: Setup) -> AsyncIterator[Workshop]:
        await self.ensure_network()
        labels = {PREFIX: self._prefix, BUILD: order.build, ATTEMPT: order.attempt}
        async with self._steps.watched(order), self._workshops.open(order, setup, labels) as workshop:
            yield workshop

    async def load(self, order: Order, archive: BinaryIO, image: str, ports: tuple[int, ...]) -> BuiltImage:
        await load(self._api, archive, image)
        where = {"repo": f"{self._prefix}/{order.workload}", "tag": order.deployment}
        found = await self._taken(image, "image")
        await self._api.call("POST", f"/images/{image}/tag", where)
        return BuiltImage(image, found["Size"], ports)

    async def _taken(self, image: str, step: Step) -> dict[str, Any]:
        """What was made, if instances can be made of it."""
        found: dict[str, Any] = await self._api.call("GET", f"/images/{image}/json")
        refusal = too_many_volumes(found, step)
        if refusal is not None:
            raise refusal
        return found

    async def full(self) -> str | None:
        return await self._steps.full()

    async def _end_step(self, container: str | None) -> None:
        """The engine ends a build that is given up by itself, but for a step that is just starting."""
        if container is None:
            return
        try:
            found = await self._api.call("GET", f"/containers/{container}/json", timeout=10)
            # The name came out of the build's own output, where a step may have put it.
            if found["HostConfig"]["NetworkMode"] == self.network and BUILD not in found["Config"]["Labels"]:
                await self._remove_container(found["Id"])
        except (Refused, Unavailable) as error:
            log.debug("a step had ended", container=container, error=str(error))

    async def publish(self, order: Order, image: BuiltImage, say: Say) -> PublishedImage:
        if self._registry is None:
            return PublishedImage(image.id, image.id)
        repository = self._registry.repository(order.organization, order.workload)
        opened = self._registry.push_header(repository)
        digest = await self._registries.push(image, repository, order.deployment, opened, say)
        return PublishedImage(f"{repository}@{digest}", digest)

    # --- the network -------------------------------------------------------------------------------

    async def ensure_network(self) -> None:
        try:
            await self._api.call("GET", f"/networks/{self.network}")
            return
        except Refused as error:
            if error.status != 404:
                raise
        wanted = {
            "Name": self.network,
            "CheckDuplicate": True,
            "Driver": "bridge",
            "Labels": {PREFIX: self._prefix},
            "Options": {
                "com.docker.network.bridge.name": self.network,
                # One build does not see another, nor the repository that is fetched for a third.
                "com.docker.network.bridge.enable_icc": "false",
            },
        }
        try:
            await self._api.call("POST", "/networks/create", body=wanted)
        except Refused as error:
            # Another builder on this engine was faster.
            if error.status not in (403, 409):
                raise

    # --- order afterwards --------------------------------------------------------------------------

    async def discard(self, build: str, but: str | None = None) -> None:
        for found in await self._containers({"label": [f"{PREFIX}={self._prefix}", f"{BUILD}={build}"]}):
            if found["Labels"].get(ATTEMPT) != but:
                await self._remove_container(found["Id"])

    async def sweep(self, active: Collection[str]) -> None:
        if not self._recalled:
            await self._workshops.recall()
            self._recalled = True
        now = self._clock.now()
        for found in await self._containers({"network": [self.network]}):
            build = found["Labels"].get(BUILD)
            age = now - datetime.fromtimestamp(found["Created"], UTC)
            # The engine's own step containers carry no label; while they run they are somebody's build, and
            # no build is that long.
            theirs = build is None and found["State"] == "running"
            if build not in active and age > (self._longest + _ABANDONED if theirs else _ABANDONED):
                await self._remove_container(found["Id"])

    async def _containers(self, filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = await self._api.call(
            "GET", "/containers/json", {"all": True, "filters": filters}
        )
        return found

    async def _remove_container(self, container: str) -> None:
        try:
            await self._api.call("DELETE", f"/containers/{container}", {"force": True, "v": True})
        except Refused as error:
            # Gone, or somebody else is at it.
            if error.status not in (404, 409):
                raise

    async def images(self) -> tuple[KeptImage, ...]:
        kept = []
        for found in await self._api.call("GET", "/images/json"):
            made_at = datetime.fromtimestamp(found["Created"], UTC)
            tags: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
            for tag in found["RepoTags"] or ():
                name = _APPS_IMAGE.match(tag)
                if name is not None and self._is_ours(name["place"]):
                    tags[name["workload"], name["deployment"]].append(tag)
            for (workload, deployment), own in tags.items():
                digests = tuple(found["RepoDigests"] or ())
                kept.append(KeptImage(found["Id"], tuple(own), digests, deployment, workload, made_at))
        return tuple(kept)

    def _is_ours(self, place: str) -> bool:
        return place == self._prefix or (
            self._registry is not None and place.startswith(f"{self._registry.address}/")
        )

    async def remove(self, image: KeptImage) -> bool:
        for name in image.tags:
            if not await self._remove_image(name):
                return False
        return True

    async def withdraw(self, reference: str) -> None:
        if self._registry is not None and reference.startswith(f"{self._registry.address}/"):
            await self._registry.remove(reference)

    async def _remove_image(self, name: str) -> bool:
        """The engine refuses by itself what a container uses, running or not, and what others build on."""
        try:
            await self._api.call("DELETE", f"/images/{quote(name)}")
        except Refused as error:
            if error.status == 409:
                return False
            if error.status != 404:
                raise
        return True

    def layers(self) -> frozenset[str]:
        layers = frozenset(self._layers | self._workshops.used)
        self._layers.clear()
        self._workshops.used.clear()
        return layers

    async def weigh(self, layers: Collection[str]) -> dict[str, int]:
        volumes = {layer for layer in layers if self._workshops.is_cache(layer)}
        weights = await self._workshops.weigh(volumes) if volumes else {}
        for layer in set(layers) - volumes:
            found = await found_image(self._api, layer)
            # One with a name is no cache, whoever printed it.
            if found is not None and not found["RepoTags"]:
                parent = await found_image(self._api, found["Parent"]) if found["Parent"] else None
                weights[layer] = int(found["Size"]) - (int(parent["Size"]) if parent else 0)
        return weights

    async def forget(self, layer: str) -> bool:
        if self._workshops.is_cache(layer):
            return await self._workshops.forget(layer)
        found = await found_image(self._api, layer)
        if found is None:
            return True
        # A step may have printed the name of any image; only a nameless one that is no app's is cache.
        if found["RepoTags"] or found["RepoDigests"]:
            return True
        return await self._remove_image(layer)

    async def engine(self) -> str:
        if self._engine is None:
            self._engine = str((await self._api.call("GET", "/info"))["ID"])
        return self._engine

    async def close(self) -> None:
        """An unused network goes; the next build makes it again."""
        for pause in _LEAVING:
            await self._clock.sleep(pause)
            try:
                await self._api.call("DELETE", f"/networks/{self.network}", timeout=5)
                return
            except Unavailable as error:
                log.info("the builds' network stays", network=self.network, error=error.message)
                return
            except Refused as error:
                if error.status == 404:
                    return
                # In use: by a step that is just being ended, or by another builder's.
                log.debug("the builds' network is in use", network=self.network, error=error.words)


def _failed(output: BuildOutput) -> Exception:
    message = output.error or "the engine ended the build without an image"
    if output.error is None or (output.exit_code is None and is_ours(message)):
        return ProviderFailed(f"the engine could not build: {message}")
    if output.exit_code is not None and output.instruction:
        message = f"`{output.instruction[:300]}` ended with exit code {output.exit_code}"
    return StepFailed("build", message, exit_code=output.exit_code)
