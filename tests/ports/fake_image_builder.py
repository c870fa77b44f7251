"""An image builder without an engine: it plays a few Dockerfile words, fails and waits as it is told."""

import asyncio
import hashlib
import io
import tarfile
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import BinaryIO, Literal

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
    StepFailed,
    Submodule,
)
from contracts.credentials import RegistryLogin
from contracts.image_reference import ImageReference

from tests.ports.fake_workshop import FakeWorkshop

Call = Literal["fetch", "pull", "build", "publish"]


class FakeImageBuilder:
    """`RUN echo …`, `RUN exit n`, `RUN sleep for-ever` and `EXPOSE n` do what they say."""

    def __init__(self) -> None:
        # Address -> files: what can be fetched.
        self.repositories: dict[str, dict[str, str]] = {}
        self.submodules: dict[str, tuple[Submodule, ...]] = {}
        self.fetched: list[Repository] = []
        self.pulled: list[tuple[ImageReference, RegistryLogin | None]] = []
        self.registry: str | None = None
        self.in_use: set[str] = set()
        self.no_room: str | None = None
        # Of each layer.
        self.weight = 0
        self.forgotten: list[str] = []
        self.withdrawn: list[str] = []
        # How long every build takes.
        self.seconds = 0.0
        # Containers of builds under way, as (build, attempt).
        self.containers: set[tuple[str, str]] = set()
        self.builds: list[Order] = []
        self.logins: list[RegistryLogin | None] = []
        # Reference -> what is there to stand on.
        self.found: dict[str, FoundImage] = {}
        # (order's cache, kind) -> files: what an app's builds keep for the next one.
        self.caches: defaultdict[tuple[str, str], dict[str, bytes]] = defaultdict(dict)
        self._kept: dict[str, KeptImage] = {}
        self._layers: set[str] = set()
        self._failures: defaultdict[Call, deque[Exception]] = defaultdict(deque)
        self._gate = asyncio.Event()
        self._gate.set()

    def fail_next(self, call: Call, error: Exception) -> None:
        self._failures[call].append(error)

    def hold(self) -> None:
        """Builds begin, and do not go on until `let_go`."""
        self._gate.clear()

    def let_go(self) -> None:
        self._gate.set()

    def _fail(self, call: Call) -> None:
        if self._failures[call]:
            raise self._failures[call].popleft()

    async def fetch(self, order: Order, repository: Repository, into: BinaryIO, say: Say) -> Fetched:
        self._fail("fetch")
        self.fetched.append(repository)
        files = self.repositories.get(repository.git.url)
        if files is None:
            await say("stderr", "fatal: repository not found")
            raise StepFailed(
                "source", "the repository could not be fetched: repository not found", exit_code=128
            )
        with tarfile.open(fileobj=into, mode="w") as tar:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        return Fetched(commit, "Tests", "first", self.submodules.get(repository.git.url, ()))

    async def pull(
        self, order: Order, reference: ImageReference, login: RegistryLogin | None, say: Say
    ) -> BuiltImage:
        self.pulled.append((reference, login))
        self._fail("pull")
        image = f"sha256:{hashlib.sha256(str(reference).encode()).hexdigest()}"
        self._kept[image] = KeptImage(image, (), (), order.deployment, order.workload, datetime.now(UTC))
        return BuiltImage(image, 4096, (80,))

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
        self.logins.append(login)
        self.builds.append(order)
        self.containers.add((order.build, order.attempt))
        try:
            await asyncio.sleep(self.seconds)
            await self._gate.wait()
            self._fail("build")
            context.seek(0)
            content = context.read()
            return await self._steps(order, content, dockerfile, say)
        finally:
            self.containers.discard((order.build, order.attempt))

    async def _steps(self, order: Order, content: bytes, dockerfile: str, say: Say) -> BuiltImage:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            try:
                found = tar.extractfile(dockerfile)
            except KeyError:
                raise StepFailed("build", f"Cannot locate specified Dockerfile: {dockerfile}") from None
            assert found is not None
            lines = [line for line in found.read().decode().splitlines() if line.strip()]
        ports = []
        for number, line in enumerate(lines, 1):
            await say("platform", f"Step {number}/{len(lines)} : {line}")
            match line.split():
                case ["EXPOSE", *exposed]:
                    ports += [int(port) for port in exposed]
                case ["RUN", "exit", code]:
                    raise StepFailed("build", f"`{line}` ended with exit code {code}", exit_code=int(code))
                case ["RUN", "sleep", *_]:
                    await asyncio.Event().wait()
                case ["RUN", "echo", *words, ">&2"]:
                    await say("stderr", " ".join(words))
                case ["RUN", "echo", *words]:
                    await say("stdout", " ".join(words))
        digest = hashlib.sha256(content + order.deployment.encode()).hexdigest()
        image = f"sha256:{digest}"
        self._kept[image] = KeptImage(image, (), (), order.deployment, order.workload, datetime.now(UTC))
        self._layers.add(digest[:12])
        return BuiltImage(image, len(content), tuple(sorted(ports)))

    async def exists(self, reference: str) -> bool | None:
        return reference in self.found

    async def find(
        self,
        order: Order,
        reference: str,
        say: Say,
        *,
        trusted: bool = False,
        login: RegistryLogin | None = None,
    ) -> FoundImage:
        self.logins.append(login)
        if reference not in self.found:
            raise StepFailed("build", f"the base image {reference} cannot be had: no such image")
        return self.found[reference]

    @asynccontextmanager
    async def workshop(self, order: Order, setup: Setup) -> AsyncIterator[FakeWorkshop]:
        self.containers.add((order.build, order.attempt))
        kept = {}
        if order.cache is not None and setup.cache is not None:
            kept = self.caches[order.cache, setup.cache]
        try:
            yield FakeWorkshop(setup, kept)
        finally:
            self.containers.discard((order.build, order.attempt))

    async def load(self, order: Order, archive: BinaryIO, image: str, ports: tuple[int, ...]) -> BuiltImage:
        archive.seek(0)
        size = len(archive.read())
        self._kept[image] = KeptImage(image, (), (), order.deployment, order.workload, datetime.now(UTC))
        return BuiltImage(image, size, ports)

    async def publish(self, order: Order, image: BuiltImage, say: Say) -> PublishedImage:
        self._fail("publish")
        if self.registry is None:
            return PublishedImage(image.id, image.id)
        return PublishedImage(f"{self.registry}/{order.organization}/{order.workload}@{image.id}", image.id)

    async def discard(self, build: str, but: str | None = None) -> None:
        self.containers = {(b, attempt) for b, attempt in self.containers if b != build or attempt == but}

    async def sweep(self, active: Collection[str]) -> None:
        self.containers = {(build, attempt) for build, attempt in self.containers if build in active}

    async def full(self) -> str | None:
        return self.no_room

    async def images(self) -> tuple[KeptImage, ...]:
        return tuple(self._kept.values())

    async def remove(self, image: KeptImage) -> bool:
        if image.id in self.in_use:
            return False
        self._kept.pop(image.id, None)
        return True

    async def withdraw(self, reference: str) -> None:
        self.withdrawn.append(reference)

    def layers(self) -> frozenset[str]:
        layers = frozenset(self._layers)
        self._layers.clear()
        return layers

    async def weigh(self, layers: Collection[str]) -> dict[str, int]:
        return dict.fromkeys(layers, self.weight)

    async def forget(self, layer: str) -> bool:
        self.forgotten.append(layer)
        return True

    async def engine(self) -> str:
        return "fake"

    async def close(self) -> None:
        return
