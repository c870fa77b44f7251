"""The gateway on its real servers, with a real door; the tests play every other service."""

import itertools
import socket
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from contracts.build_queries import (
    BuildLogAfter,
    BuildLogPage,
    BuildQueue,
    BuildsOpen,
    ImageExistence,
    ImageLookup,
    OpenBuild,
)
from contracts.errors import Unavailable
from contracts.events import (
    AppChanged,
    BuildFinished,
    BuildStarted,
    CreditGranted,
    DeploymentRequested,
    Event,
    PlacementDecided,
    RolloutFinished,
    WalletChanged,
)
from contracts.ids import new_id
from contracts.money import Money
from contracts.queries import (
    AllNodes,
    InstanceUse,
    NodeInfo,
    Nodes,
    RegionInfo,
    Regions,
    RegionsWithRoom,
    SilentAfter,
    SilentWorkloads,
    Statement,
    StatementOf,
    Traffic,
    UsageOf,
    Wallet,
    WalletOf,
    WorkloadUsage,
)
from contracts.reports import BuildLog, LogLine, NodeCapacity, NodeUsage
from contracts.workload import BuildFailed, BuildResult, BuildSucceeded, WorkloadSpec
from gateway.app import create
from gateway.settings import GatewaySettings
from runtime.host import Host
from runtime.http_server import HttpServer
from runtime.service import Service

from tests.customer import Customer, archive
from tests.harness import Harness, Servers, open_harness

ADMIN = ("root@example.org", "a-long-enough-one-17")
HOST = "git.example.org"
PUBLIC = "93.184.216.34"
SOURCE = archive({"Procfile": "web: python app.py\n", "app.py": "print('hello')\n"})
_counter = itertools.count(1)


@dataclass
class Parts:
    """What the services that are not here would answer."""

    regions: list[RegionInfo] = field(
        default_factory=lambda: [
            RegionInfo(name="far", base_domain="far.example.org", has_room=False),
            RegionInfo(name="local", base_domain="localhost", has_room=True),
        ]
    )
    wallets: dict[str, int] = field(default_factory=dict)
    statements: dict[str, Statement] = field(default_factory=dict)
    logs: dict[str, list[LogLine]] = field(default_factory=lambda: defaultdict(list))
    queue: list[OpenBuild] = field(default_factory=list)
    used: dict[str, tuple[InstanceUse, ...]] = field(default_factory=dict)
    traffic: dict[str, Traffic] = field(default_factory=dict)
    # What the builder knows of images: they are there, they are not, or nobody answers.
    images: dict[str, bool] = field(default_factory=dict)
    # Workloads of which nothing answers.
    silent: list[str] = field(default_factory=list)
    # The builder does not answer.
    away: bool = False

    async def regions_with_room(self, _: RegionsWithRoom) -> Regions:
        return Regions(regions=tuple(self.regions))

    async def all_nodes(self, _: AllNodes) -> Nodes:
        usage = NodeUsage(cpu_millis=100, memory_mb=512, disk_mb=1000, load=0.5)
        node = NodeInfo(
            name="local",
            region="local",
            status="online",
            last_seen_at=datetime.now(UTC),
            capacity=NodeCapacity(cpu_millis=2000, memory_mb=4096, disk_mb=50_000),
            allocated=usage,
            used=usage,
            instances=1,
            engine="docker 20.10",
        )
        return Nodes(nodes=(node,))

    async def silent_workloads(self, _: SilentAfter) -> SilentWorkloads:
        return SilentWorkloads(workloads=tuple(self.silent), next=None)

    async def wallet(self, query: WalletOf) -> Wallet:
        def usd(micros: int) -> Money:
            return Money(micros=micros, currency="USD")

        balance = self.wallets.get(query.organization, 0)
        return Wallet(organization=query.organization, balance=usd(balance), accrued=usd(7))

    async def statement(self, query: StatementOf) -> Statement:
        return self.statements.get(query.organization, Statement(charges=(), entries=()))

    async def builds(self, query: BuildsOpen) -> BuildQueue:
        if self.away:
            raise Unavailable("the builder is away")
        found = [build for build in self.queue if query.deployment in (None, build.deployment)]
        running = sum(build.position is None for build in self.queue)
        return BuildQueue(
            builds=tuple(found[query.offset : query.offset + query.limit]),
            running=running,
            waiting=len(self.queue) - running,
        )

    async def image(self, query: ImageLookup) -> ImageExistence:
        if self.away:
            raise Unavailable("the builder is away")
        return ImageExistence(exists=self.images.get(query.reference))

    async def usage(self, query: UsageOf) -> WorkloadUsage:
        if self.away:
            raise Unavailable("the scheduler is away")
        return WorkloadUsage(
            instances=self.used.get(query.workload, ()),
            traffic=self.traffic.get(query.workload, Traffic()),
        )

    async def log(self, query: BuildLogAfter) -> BuildLogPage:
        if self.away:
            raise Unavailable("the builder is away")
        lines = [line for line in self.logs[query.deployment] if line.sequence > query.after]
        return BuildLogPage(lines=tuple(lines[: query.limit]), finished=False)


@dataclass
class World:
    harness: Harness
    host: Host
    parts: Parts
    url: str
    door: HttpServer
    _customers: list[Customer] = field(default_factory=list)

    async def visitor(self) -> Customer:
        customer = await Customer(self.url).__aenter__()
        self._customers.append(customer)
        return customer

    async def customer(self, *, credit: str | None = "25.00") -> Customer:
        customer = await self.visitor()
        await customer.register(f"somebody-{next(_counter)}@example.org")
        if credit is not None:
            admin = await self.administrator()
            await admin.call(
                "POST", f"/api/admin/organizations/{customer.organization}/credits", json={"amount": credit}
            )
        return customer

    async def administrator(self) -> Customer:
        customer = await self.visitor()
        await customer.log_in(*ADMIN)
        return customer

    async def close(self) -> None:
        for customer in self._customers:
            await customer.__aexit__()

    # --- the other services' part ---------------------------------------------------------------------

    async def say(self, *events: Event) -> None:
        """Publishes, and waits until the gateway has heard it."""
        await self.harness.publish(*events)
        await self.harness.settle()

    async def spec(self, app: str) -> WorkloadSpec:
        """The newest specification of an app that the gateway has published."""
        await self.harness.settle()
        said = [e.spec for e in await self.harness.events(AppChanged) if e.spec.id == app]
        return max(said, key=lambda spec: spec.generation)

    async def requested(self, deployment: str) -> DeploymentRequested:
        return await self.harness.event(DeploymentRequested, lambda e: e.deployment == deployment)

    async def build(self, deployment: str, **more: Any) -> WorkloadSpec:
        """Builds it, and gives the specification that follows from it."""
        request = await self.requested(deployment)
        await self.say(started(request), finished(request, succeeded(**more)))
        return await self.spec(request.workload)

    async def roll_out(self, spec: WorkloadSpec, *nodes: str) -> None:
        chosen = nodes or ("local",)
        await self.say(decided(spec, *chosen), *(rollout(spec, node) for node in chosen))

    async def live(self, customer: Customer, name: str, **more: Any) -> tuple[str, WorkloadSpec]:
        """An app of the customer's, from nothing to running."""
        app = await customer.create(name, **more)
        spec = await self.build(await customer.deploy(app, SOURCE))
        await self.roll_out(spec)
        assert (await customer.call("GET", f"/api/paas/apps/{app}"))["status"] == "running"
        return app, spec

    async def balance(
        self, organization: str | None, micros: int, sequence: int, *, booked: bool = True
    ) -> None:
        """Billing's word, in which every credit is `booked` by then, or none."""
        assert organization is not None
        await self.harness.settle()
        granted = [
            e.credit for e in await self.harness.events(CreditGranted) if e.organization == organization
        ]
        await self.say(
            *(
                WalletChanged(
                    organization=organization,
                    sequence=sequence,
                    balance=Money(micros=micros, currency="USD"),
                    credit=credit,
                )
                for credit in (granted if booked and granted else [None])
            )
        )

    async def log(self, deployment: str, *numbers: int, live: bool = True, stored: bool = True) -> None:
        written = tuple(line(number) for number in numbers)
        if stored:
            self.parts.logs[deployment].extend(written)
        if live:
            report = BuildLog(build=new_id("bld"), deployment=deployment, lines=written)
            await self.harness.client.publish(report.subject(), report.model_dump_json().encode())
            await self.harness.client.flush()


def line(number: int) -> LogLine:
    return LogLine(
        sequence=number, at=datetime.now(UTC), stream="stdout", step="build", text=f"line {number} \u2713"
    )


def started(request: DeploymentRequested) -> BuildStarted:
    return BuildStarted(
        build=new_id("bld"),
        deployment=request.deployment,
        workload=request.workload,
        organization=request.organization,
    )


def finished(request: DeploymentRequested, result: BuildResult) -> BuildFinished:
    return BuildFinished(
        build=new_id("bld"),
        deployment=request.deployment,
        workload=request.workload,
        organization=request.organization,
        seconds=1.5,
        result=result,
    )


def succeeded(**more: Any) -> BuildSucceeded:
    image = f"registry.local/app:{next(_counter)}"
    return BuildSucceeded(
        **{"image": image, "digest": "sha256:0", "size_bytes": 4096, "recipe": "python-3.11", **more}
    )


def failed(**more: Any) -> BuildFailed:
    return BuildFailed(**{"step": "install", "exit_code": 1, "message": "no such package", **more})


def decided(spec: WorkloadSpec, *nodes: str, later: float = 0) -> PlacementDecided:
    return PlacementDecided(
        at=datetime.now(UTC) + timedelta(seconds=later),
        workload=spec.id,
        organization=spec.organization,
        generation=spec.generation,
        deployment=spec.deployment,
        nodes=nodes,
    )


def rollout(spec: WorkloadSpec, node: str = "local", *, ok: bool = True, **more: Any) -> RolloutFinished:
    return RolloutFinished(
        **{
            "node": node,
            "workload": spec.id,
            "organization": spec.organization,
            "generation": spec.generation,
            "deployment": spec.deployment,
            "ok": ok,
            "running": int(ok),
            **more,
        }
    )


def resolve(host: str, port: int) -> list[str]:
    """Names as a resolver would answer them, on a machine that may have none."""
    known = {
        HOST: [PUBLIC],
        "both.example.org": [PUBLIC, "10.0.0.7"],
        "inside.example.org": ["192.168.1.2"],
        "slow.example.org": None,
    }
    if host in known:
        found = known[host]
        if found is None:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return found
    try:
        return [str(a[0]) for *_, a in socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)]
    except socket.gaierror as error:
        raise socket.gaierror(socket.EAI_NONAME, "no such name") from error


@asynccontextmanager
async def world(running: Servers, folder: Path, **settings: Any) -> AsyncIterator[World]:
    harness = await open_harness(running, "gateway", folder)
    try:
        async with opened(harness, **settings) as found:
            yield found
    finally:
        await harness.close()


@asynccontextmanager
async def opened(harness: Harness, **settings: Any) -> AsyncIterator[World]:
    parts = Parts()
    bus = await harness.everybody()
    for query, answer in (
        (RegionsWithRoom, parts.regions_with_room),
        (AllNodes, parts.all_nodes),
        (WalletOf, parts.wallet),
        (StatementOf, parts.statement),
        (BuildLogAfter, parts.log),
        (UsageOf, parts.usage),
        (SilentAfter, parts.silent_workloads),
        (BuildsOpen, parts.builds),
        (ImageLookup, parts.image),
    ):
        bus.answer(query, answer)
    await bus.start_broker()
    chosen = GatewaySettings(
        **{"admin_email": ADMIN[0], "admin_password": ADMIN[1], "stream_seconds": 60, **settings}
    )
    host = await harness.start("gateway", lambda runtime: create(runtime, chosen, resolve))
    async with door(host.service) as (server, url):
        found = World(harness, host, parts, url, server)
        try:
            yield found
        finally:
            await found.close()


@asynccontextmanager
async def door(service: Service) -> AsyncIterator[tuple[HttpServer, str]]:
    """A real HTTP server before the service, as the platform has one."""
    assert service.http is not None
    server = HttpServer(service.http)
    serving = await server.begin()
    try:
        yield server, f"http://127.0.0.1:{server.bound}"
    finally:
        server.should_exit = True
        await serving
