"""The image builders the conformance suite runs on, each with a repository it can fetch."""

import io
import tarfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from builder.docker_builder import DockerBuilder
from builder.engine_api import EngineApi, Refused
from builder.image_builder import FoundImage, ImageBuilder, Order, Repository, Stream
from builder.own_registry import OwnRegistry
from contracts.git_address import parse
from contracts.ids import new_id
from runtime.clock import SystemClock

from tests.ports.fake_image_builder import FakeImageBuilder
from tests.ports.git_server import GitServer, git_server

URL = "unix:///var/run/docker.sock"
# A name of the tests' own, so that nothing of a running platform is touched.
PREFIX = "bldtest"
BASE = "berth/base:bookworm"
FILES = {"Dockerfile": f"FROM {BASE}\n", "src/app.sh": "echo hello\n"}


class Said:
    """Collects what a build says."""

    def __init__(self) -> None:
        self.lines: list[tuple[Stream, str]] = []

    async def __call__(self, stream: Stream, text: str) -> None:
        self.lines.append((stream, text))

    def of(self, stream: Stream) -> list[str]:
        return [text for said, text in self.lines if said == stream]


def new_order(**changes: Any) -> Order:
    order: dict[str, Any] = {
        "build": new_id("bld"),
        "attempt": new_id("hld"),
        "deployment": new_id("dep"),
        "workload": new_id("app"),
        "organization": new_id("org"),
    }
    chosen = {**order, **changes}
    return Order(**{"cache": f"{chosen['workload']}.0", **chosen}, memory_mb=512, cpu_millis=2000)


def context(files: Mapping[str, str]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    made.truncate(tar.offset)
    made.seek(0)
    return made


class Hands(Protocol):
    @property
    def builder(self) -> ImageBuilder: ...

    # Holds FILES.
    repository: Repository


class FakeHands:
    repository = Repository(parse("https://git.example/app.git"), "192.0.2.7", "main")

    def __init__(self) -> None:
        self.builder = FakeImageBuilder()
        self.builder.repositories[self.repository.git.url] = FILES
        self.builder.found[BASE] = FoundImage(
            "sha256:" + "0" * 64, {}, ("sha256:" + "1" * 64,), "amd64", "linux"
        )


class DockerHands:
    def __init__(self, builder: DockerBuilder, api: EngineApi, server: GitServer) -> None:
        self.builder = builder
        self.api = api
        self.server = server
        self.repository = self.at("app.git", "main")

    def at(self, path: str, ref: str | None) -> Repository:
        git = parse(f"{self.server.url}/{path}", allow_http=True)
        return Repository(git, git.host, ref)


def docker_builder(
    prefix: str = PREFIX,
    registry: OwnRegistry | None = None,
    pids: int = 200,
    least_free_mb: int = 256,
    *,
    allow_private_registry: bool = False,
) -> DockerBuilder:
    return DockerBuilder(
        EngineApi(URL),
        SystemClock(),
        prefix=prefix,
        pids=pids,
        git_image="berth/git:bookworm",
        git_seconds=30,
        build_seconds=60,
        source_bytes=20 * 1024 * 1024,
        ca_bundle=None,
        registry=registry,
        least_free_mb=least_free_mb,
        allow_private_registry=allow_private_registry,
    )


async def clear(builder: DockerBuilder, api: EngineApi) -> None:
    """Takes away what a run, this one or one that crashed, has made."""
    for found in await api.call(
        "GET", "/containers/json", {"all": True, "filters": {"network": [builder.network]}}
    ):
        # The engine itself may be removing it: what a step left takes its time.
        with suppress(Refused):
            await api.call("DELETE", f"/containers/{found['Id']}", {"force": True})
    for image in await builder.images():
        await builder.remove(image)
    await builder.sweep(())
    for layer in builder.layers():
        await builder.forget(layer)
    await builder.close()


@asynccontextmanager
async def docker_hands(folder: Path, prefix: str = PREFIX) -> AsyncIterator[DockerHands]:
    builder, api = docker_builder(prefix), EngineApi(URL)
    await clear(builder, api)
    await builder.ensure_network()
    try:
        network = await api.call("GET", f"/networks/{builder.network}")
        address = network["IPAM"]["Config"][0]["Gateway"]
        with git_server(folder, address) as server:
            server.repository("app", FILES)
            yield DockerHands(builder, api, server)
    finally:
        # A new one finds every cache that is there, whoever has asked for the used ones meanwhile.
        await clear(docker_builder(prefix), api)
