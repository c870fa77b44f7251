"""One process of the platform: any of its services, or all of them in one event loop. Same code."""

import asyncio
import ctypes
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import orjson
import structlog
from contracts.errors import error_body

from runtime.bus import Bus
from runtime.clock import Clock, SystemClock
from runtime.host import Host
from runtime.ops import Ops
from runtime.permissions import node_name
from runtime.runtime import Runtime
from runtime.service import AsgiApp, Service
from runtime.settings import RuntimeSettings
from runtime.tasks import end
from runtime.telemetry import Telemetry, configure_logging, exporter_for

log = structlog.get_logger("runtime.run")

# Without tables, and so without a database.
STATELESS = ("node-agent",)


def entry_points() -> dict[str, metadata.EntryPoint]:
    return {entry.name: entry for entry in metadata.entry_points(group="berth.services")}


def make_runtime(name: str, settings: RuntimeSettings, clock: Clock, telemetry: Telemetry) -> Runtime:
    store = None
    user = name
    if name in STATELESS:
        user = node_name(settings.node)
    else:
        from runtime.store import Store

        store = Store(
            settings.database_url,
            name,
            settings.database_password_of(name),
            settings.database_connections,
            telemetry,
        )
    bus = Bus(settings.nats_url, user, settings.nats_password_of(user), telemetry, settings.nats_ca)
    return Runtime(name, settings, clock, bus, telemetry, store)


@dataclass(eq=False)
class Process:
    settings: RuntimeSettings
    hosts: list[Host]
    telemetry: Telemetry
    ops_port: int = 0
    api_port: int = 0
    _ops: Ops | None = None
    _http: Any = None
    _serving: asyncio.Task[None] | None = None
    _starting: list[asyncio.Task[None]] = field(default_factory=list)

    def readiness(self) -> dict[str, bool]:
        return {h.service.name: h.ready and h.runtime.bus.connected for h in self.hosts}

    async def start(self) -> None:
        """Begins everything and returns; services wait for their servers by themselves."""
        self._ops = Ops(self.readiness, self.telemetry.registry)
        self.ops_port = await self._ops.start(self.settings.ops_host, self.settings.ops_port)
        for host in self.hosts:
            if host.service.http is not None:
                await self._serve(_once_ready(host, host.service.http))
        for host in self.hosts:
            self._starting.append(asyncio.create_task(host.start(), name=f"start {host.service.name}"))

    async def started(self) -> None:
        await asyncio.gather(*self._starting)

    async def _serve(self, app: AsgiApp) -> None:
        # Not every process has a door, and one without needs no library for it.
        from runtime.http_server import HttpServer

        self._http = HttpServer(app, self.settings.http_host, self.settings.api_port)
        self._serving = await self._http.begin()
        self.api_port = self._http.bound

    async def stop(self) -> None:
        """First the door, then the work, then the connections."""
        for host in self.hosts:
            if host.service.on_closing is not None:
                host.service.on_closing()
        if self._http is not None and self._serving is not None:
            self._http.should_exit = True
            await self._serving
        await end(self._starting, patience=1)
        await asyncio.gather(*(host.stop() for host in self.hosts))
        if self._ops is not None:
            await self._ops.stop()
        self.telemetry.close()


def _once_ready(host: Host, app: AsgiApp) -> AsgiApp:
    """Until the service is connected the door answers, and says that it does."""
    refusal = orjson.dumps(error_body("unavailable", "the platform is starting; try again in a moment"))

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if host.ready or scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"1")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": refusal})

    return guarded


def build(names: Sequence[str], settings: RuntimeSettings) -> Process:
    telemetry = Telemetry(exporter_for(settings.otlp_endpoint), settings.trace_ratio)
    clock = SystemClock()
    found = entry_points()
    hosts = []
    for name in names:
        runtime = make_runtime(name, settings, clock, telemetry)
        service: Service = found[name].load()(runtime)
        hosts.append(Host(runtime, service))
    return Process(settings, hosts, telemetry)


def _give_memory_back() -> None:
    """By itself glibc keeps what a single password's hash has needed once, 19 MB, for ever."""
    trim_threshold = -1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 128 * 1024)


async def _main(names: Sequence[str], settings: RuntimeSettings) -> None:
    process = build(names, settings)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await process.start()
    log.info("running", services=list(names), ops_port=process.ops_port, api_port=process.api_port or None)
    # A service that cannot start by its own fault ends the process; a server that is away does not.
    starting = asyncio.create_task(process.started())
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        await waiting
    starting.cancel()
    log.info("stopping", services=list(names))
    await process.stop()


def run(names: Sequence[str]) -> None:
    settings = RuntimeSettings()
    configure_logging(settings.log_level)
    _give_memory_back()
    if tuple(names) == ("node-agent",):
        asyncio.run(_main(names, settings))
        return
    import uvloop

    uvloop.run(_main(names, settings))
