"""The whole platform in one process, on a scratch Postgres and NATS and a real Traefik.

Only the edges are played: an engine and an image builder that can be told to fail. Customers come through
the API's real application. `tests/journeys` has the same with nothing played.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from builder.app import create as create_builder
from builder.settings import BuilderSettings
from contracts.queries import AllNodes
from embedded.traefik import Traefik
from gateway.app import create as create_gateway
from gateway.settings import GatewaySettings
from node_agent.app import create as create_agent
from node_agent.machine import Machine, Share
from node_agent.settings import NodeAgentSettings
from pydantic import SecretStr
from runtime.runtime import Runtime
from runtime.service import Service

from tests.customer import Customer
from tests.harness import Harness, Servers, eventually, free_port, open_harness
from tests.ports.fake_engine import FakeEngine
from tests.ports.fake_image_builder import FakeImageBuilder

ADMIN = ("admin@example.org", "an administrator of tests")
# The one that is there from the beginning.
NODE = "local"


class _Shared(dict[str, str]):
    """What the image builder has made, the engine has: they are one machine's."""

    def __contains__(self, image: object) -> bool:
        return True

    def __missing__(self, image: str) -> str:
        return ""


class Gauge:
    """A machine of this size, whose memory is in use as far as the test says."""

    def __init__(self, folder: Path, *, cpu_millis: int, memory_mb: int = 8000) -> None:
        self.machine = Machine(Share(cpu_millis), folder, folder)
        self._folder = folder
        self._memory = memory_mb * 1024
        (folder / "stat").write_text("cpu  1 0 0 1 0 0 0 0 0 0\n")
        (folder / "loadavg").write_text("0.0 0.0 0.0 1/2 3\n")
        self.uses(0.4)

    def uses(self, share: float) -> None:
        free = round(self._memory * (1 - share))
        # It is read every second: whole, or not at all.
        written = self._folder / "meminfo.new"
        written.write_text(f"MemTotal: {self._memory} kB\nMemAvailable: {free} kB\n")
        written.replace(self._folder / "meminfo")


@dataclass
class World:
    harness: Harness
    folder: Path
    images: FakeImageBuilder
    # Of each node.
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    proxies: dict[str, Traefik] = field(default_factory=dict)

    @property
    def engine(self) -> FakeEngine:
        return self.engines[NODE]

    async def join(self, name: str, *, region: str = NODE, machine: Machine | None = None) -> None:
        """A node with an engine and an ingress of its own; or one of that name again."""
        if name not in self.engines:
            self.engines[name] = FakeEngine()
            self.engines[name].images = _Shared()
            traefik = Traefik(self.folder / f"traefik-{name}", free_port(), free_port())
            self.proxies[name] = traefik
            traefik.start()
            await asyncio.to_thread(traefik.wait_ready)
        traefik, engine = self.proxies[name], self.engines[name]
        settings = NodeAgentSettings(
            region=region,
            routes=traefik.routes,
            ingress_url=f"http://127.0.0.1:{traefik.port}",
            heartbeat_seconds=1,
            drain_seconds=1,
            cpu_millis=64_000,
        )

        def create(runtime: Runtime) -> Service:
            return create_agent(runtime, engine, settings=settings, machine=machine)

        await self.harness.start("node-agent", create, alias=name, node=name)

    async def end(self) -> None:
        for traefik in self.proxies.values():
            traefik.stop()
        for engine in self.engines.values():
            await engine.end()

    def customer(self) -> Customer:
        app = self.harness.hosts["gateway"].service.http
        assert app is not None
        return Customer(
            "http://berth",
            f"http://127.0.0.1:{self.proxies[NODE].port}",
            transport=_Door(httpx.ASGITransport(app)),
        )

    async def has_node(self) -> bool:
        nodes = await self.harness.hosts["gateway"].runtime.bus.ask(AllNodes())
        return bool(nodes.nodes)

    async def paying(self, customer: Customer, amount: str = "25") -> None:
        """The administrator gives the customer's organization money."""
        async with self.customer() as administrator:
            await administrator.log_in(*ADMIN)
            path = f"/api/admin/organizations/{customer.organization}/credits"
            await administrator.call("POST", path, json={"amount": amount})
        await eventually(lambda: _has_money(customer), what="the credit")


class _Door(httpx.AsyncBaseTransport):
    """The API is in this process; everything else is reached over the network."""

    def __init__(self, api: httpx.ASGITransport) -> None:
        self._api = api
        self._network = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        chosen = self._api if request.url.host == "berth" else self._network
        return await chosen.handle_async_request(request)

    async def aclose(self) -> None:
        await self._network.aclose()


async def _has_money(customer: Customer) -> bool:
    wallet = await customer.call("GET", "/api/paas/wallet")
    return bool(wallet["balance"]["micros"] > 0)


@asynccontextmanager
async def world(harness: Harness, folder: Path) -> AsyncIterator[World]:
    opened = World(harness, folder, FakeImageBuilder())
    try:
        admin = GatewaySettings(admin_email=ADMIN[0], admin_password=SecretStr(ADMIN[1]))
        await harness.start("gateway", lambda runtime: create_gateway(runtime, admin))
        await harness.start(
            "builder", lambda runtime: create_builder(runtime, opened.images, BuilderSettings())
        )
        for name in ("scheduler", "domains", "billing"):
            await harness.start(name)
        await opened.join(NODE)
        await eventually(opened.has_node, what="the node")
        yield opened
    finally:
        await opened.end()


@asynccontextmanager
async def world_of(name: str, running: Servers, folders: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One that all tests of a module share."""
    folder = folders.mktemp(name)
    harness = await open_harness(running, name, folder)
    try:
        async with world(harness, folder) as opened:
            yield opened
            await harness.close_services()
    finally:
        await harness.close()
