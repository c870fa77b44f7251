"""A door on loopback to which the routes of sleeping apps lead: a request waits here while its app wakes.

The ingress of this machine is the only one that comes here, and has matched the hostname; a request is handed
to the workload that has it, and to no other. Bounded in all: requests, their heads, and the time they wait.
An app that may not run is not woken: its order has no slots.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from contracts.workload import NodeWorkload
from runtime.clock import Clock
from runtime.tasks import end

from node_agent import sleep
from node_agent.desired import Desired
from node_agent.relay import LARGEST_HEAD, Malformed, Request, left, parse_request, relay
from node_agent.routes import Routes

log = structlog.get_logger("node-agent.waker")

HOST = "127.0.0.1"
# Requests of one app that are here at once, and those of all apps that wait.
MOST_OF_ONE = 200
MOST = 1000
# Unread bytes at the end of a connection would have the answer thrown away on its way.
_LINGER_BYTES, _LINGER_SECONDS = 1024 * 1024, 2.0
_HEAD_SECONDS = 10.0
_CONNECT_SECONDS = 1.0
# More than an instance's own start period: its image, its network and the ingress take their time too.
_BESIDE_START = 15.0
_LOOK_EVERY = 1.0
_PAUSE = 0.1
_REASONS = {400: "Bad Request", 431: "Request Header Fields Too Large", 502: "Bad Gateway"}


class Refused(Exception):
    def __init__(self, status: int, words: str, retry: int | None = None) -> None:
        super().__init__(words)
        self.status, self.words, self.retry = status, words, retry


@dataclass(eq=False)
class _Gate:
    """What is known of a workload here, and who waits for it."""

    addresses: tuple[str, ...] = ()
    reason: str | None = None
    here: int = 0
    turn: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Waker:
    def __init__(self, folder: Path, routes: Routes, desired: Desired, clock: Clock) -> None:
        self._file = folder / "waker"
        self._routes = routes
        self._desired = desired
        self._clock = clock
        self._rouse: Callable[[str], Awaitable[None]] | None = None
        self._gates: dict[str, _Gate] = {}
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self.address = ""

    def on_request(self, rouse: Callable[[str], Awaitable[None]]) -> None:
        """Called with a workload that is asked for and may be asleep."""
        self._rouse = rouse

    async def open(self) -> None:
        """At the port it had before, where the routes of what sleeps lead, unless that is taken."""
        try:
            port = int(self._file.read_text())
        except (OSError, ValueError):
            port = 0
        try:
            self._server = await self._listen(port)
        except OSError as error:
            log.warning("the waker's port is taken, it uses another one", port=port, error=str(error))
            self._server = await self._listen(0)
        chosen = self._server.sockets[0].getsockname()[1]
        self.address = f"{HOST}:{chosen}"
        if chosen != port:
            try:
                self._file.write_text(str(chosen))
            except OSError as error:
                # The next start takes another port, and the routes of what sleeps are written again.
                log.warning("the waker's port is not kept", port=chosen, error=str(error))

    async def _listen(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._accepted, HOST, port, limit=LARGEST_HEAD, backlog=MOST)

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        await end(self._tasks)
        await self._server.wait_closed()

    # --- what its keeper says of a workload ----------------------------------------------------------

    def tell(self, workload: str, addresses: tuple[str, ...]) -> None:
        """Where it answers now; nowhere else is a request handed to."""
        gate = self._gates.get(workload)
        if gate is None:
            if not addresses:
                return
            gate = self._gates[workload] = _Gate()
        gate.addresses = addresses
        if addresses:
            gate.reason = None
        self._changed(workload, gate)

    def failed(self, workload: str, reason: str) -> None:
        if workload in self._gates:
            self._gates[workload].reason = reason

    def busy(self, workload: str) -> bool:
        """Requests of it wait here, or are being answered."""
        return workload in self._gates and self._gates[workload].here > 0

    def _changed(self, workload: str, gate: _Gate) -> None:
        gate.changed.set()
        gate.changed = asyncio.Event()
        if not gate.addresses and not gate.here:
            self._gates.pop(workload, None)

    # --- one request -----------------------------------------------------------------------------------

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._attend(reader, writer), name="waker")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            try:
                await self._serve(reader, writer)
            except Refused as refused:
                await _refuse(writer, refused)
            await _linger(reader, writer)
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            # Whoever asked has gone.
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._waiting >= MOST:
            raise Refused(503, "too many requests wait for apps to wake", retry=5)
        with self._one_more():
            try:
                async with asyncio.timeout(_HEAD_SECONDS):
                    request = parse_request(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.LimitOverrunError as error:
                raise Refused(431, f"the headers have more than {LARGEST_HEAD} bytes") from error
            except Malformed as error:
                raise Refused(400, str(error)) from error
        wanted = self._wanted(request.host)
        workload = wanted.spec.id
        gate = self._gates.setdefault(workload, _Gate())
        if gate.here >= MOST_OF_ONE:
            raise Refused(503, "the app wakes, and too many requests wait for it already", retry=5)
        gate.here += 1
        try:
            await self._hand_on(request, wanted, gate, reader, writer)
        finally:
            gate.here -= 1
            self._changed(workload, gate)

    @contextlib.contextmanager
    def _one_more(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def _wanted(self, hostname: str) -> NodeWorkload:
        route = self._routes.at(hostname)
        if route is None or route.workload not in self._desired:
            raise Refused(503, "nothing runs here")
        wanted = self._desired[route.workload].desired
        if wanted.spec.organization != route.organization or not sleep.allowed(wanted):
            raise Refused(503, "the app does not run")
        return wanted

    async def _hand_on(
        self,
        request: Request,
        wanted: NodeWorkload,
        gate: _Gate,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        patience = wanted.spec.health.start_seconds + _BESIDE_START
        deadline = self._clock.monotonic() + patience
        while True:
            with self._one_more():
                address = await self._address(wanted.spec.id, gate, deadline, patience, reader)
            host, _, port = address.rpartition(":")
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    instance_reader, instance_writer = await asyncio.open_connection(
                        host, int(port), limit=LARGEST_HEAD
                    )
            except OSError:
                # It has just ended, and its keeper knows soon, if not yet; or more knock than it lets in at
                # once, and the kernel would knock again after ever longer pauses.
                await self._clock.sleep(_PAUSE)
                continue
            try:
                await relay(request, reader, writer, instance_reader, instance_writer)
            except Malformed as error:
                raise Refused(502, str(error)) from error
            finally:
                instance_writer.close()
                with contextlib.suppress(OSError):
                    await instance_writer.wait_closed()
            return

    async def _address(
        self, workload: str, gate: _Gate, deadline: float, patience: float, reader: asyncio.StreamReader
    ) -> str:
        while True:
            if self._clock.monotonic() > deadline:
                why = f": {gate.reason}" if gate.reason else ""
                raise Refused(
                    503, f"the app was asleep and did not wake within {patience:g} s{why}", retry=10
                )
            if gate.addresses:
                gate.turn += 1
                return gate.addresses[gate.turn % len(gate.addresses)]
            if left(reader):
                raise ConnectionAbortedError("whoever asked has gone")
            if not (workload in self._desired and sleep.allowed(self._desired[workload].desired)):
                raise Refused(503, "the app does not run")
            assert self._rouse is not None, "somebody wakes what is asked for"
            changed = gate.changed
            await self._rouse(workload)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await changed.wait()


async def _refuse(writer: asyncio.StreamWriter, refused: Refused) -> None:
    body = f"{refused.words}\n".encode()
    retry = "" if refused.retry is None else f"Retry-After: {refused.retry}\r\n"
    status = f"{refused.status} {_REASONS.get(refused.status, 'Service Unavailable')}"
    head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\n"
    with contextlib.suppress(ConnectionError):
        writer.write(f"{head}{retry}Connection: close\r\n\r\n".encode() + body)
        await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if left(reader):
        return
    writer.write_eof()
    async with asyncio.timeout(_LINGER_SECONDS):
        read = 0
        while read < _LINGER_BYTES and (piece := await reader.read(64 * 1024)):
            read += len(piece)
