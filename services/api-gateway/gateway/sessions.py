"""The customer's end of a terminal: a WebSocket, carried over the bus to the one node that has the process.

Nothing is interpreted here but the letters of the frames. Whoever of the two leaves, the other is told; a
browser that does not read is waited for, and the node with it; so is a process, and the browser.
"""

import asyncio
import contextlib
from collections.abc import Awaitable

from contracts import sessions
from contracts.errors import BerthError, Forbidden, InvalidInput, Unavailable
from contracts.ids import new_id
from contracts.sessions import Opened
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError
from runtime.store import PLATFORM
from runtime.tasks import end
from starlette.websockets import WebSocket, WebSocketDisconnect

from gateway import tickets
from gateway.desk import Desk
from gateway.tables import JobRow

_LARGEST_FRAME = 64 * 1024
_TO_NODE = (sessions.INPUT, sessions.RESIZE, sessions.END_OF_INPUT)
# Whoever keeps to the window has less under way, be it in frames of one byte, which count for three.
_MOST_WAITING = 4 * sessions.WINDOW
_PLACED_SECONDS = 30.0
_ANSWER_SECONDS = 10.0
# Close codes of our own begin at 4000.
_REFUSED, _ENDED, _BROKEN = 4403, 1000, 4503


async def serve(socket: WebSocket) -> None:
    desk: Desk = socket.app.state.desk
    await socket.accept()
    try:
        _, target = await tickets.redeem(
            desk,
            socket.query_params.get("ticket", ""),
            socket.path_params["app"],
            socket.path_params["verb"],
        )
        node = target.node or await _node_of(desk, str(target.opens.job))
        await Relay(desk, socket, node).carry(target)
    except Forbidden as error:
        await _close(socket, _REFUSED, error.message)
    except (BerthError, NatsError, TimeoutError) as error:
        await _close(socket, _BROKEN, str(error) or "the node does not answer")


async def _node_of(desk: Desk, job: str) -> str:
    end = desk.clock.monotonic() + _PLACED_SECONDS
    while desk.clock.monotonic() < end:
        async with desk.store.transaction(PLATFORM) as tx:
            row = await tx.get(JobRow, job)
        if row is None or row.finished_at is not None:
            raise Unavailable("the command has ended before it began" if row else "there is no such command")
        if row.node is not None:
            return row.node
        await desk.clock.sleep(0.1)
    raise Unavailable("no node has room for it at the moment; try again later")


class Relay:
    """One session between one browser and one node."""

    def __init__(self, desk: Desk, socket: WebSocket, node: str) -> None:
        self._desk = desk
        self._socket = socket
        self._node = node
        self._session = new_id("ses")
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = 0
        self._heard_at = desk.clock.monotonic()
        self._under_way = 0
        self._room = asyncio.Event()
        self._room.set()
        # An older node does not say what has arrived.
        self._told_of = False

    async def carry(self, target: tickets.Target) -> None:
        client = self._desk.bus.client

        async def heard(message: Msg) -> None:
            self._heard_at = self._desk.clock.monotonic()
            if message.data[:1] == sessions.ARRIVED:
                self._under_way = max(0, self._under_way - int.from_bytes(message.data[1:], "big"))
                if self._under_way < sessions.WINDOW:
                    self._room.set()
                return
            if self._waiting < _MOST_WAITING:
                self._waiting += 1 + len(message.data)
                self._said.put_nowait(message.data)

        subscription = await client.subscribe(sessions.from_node(self._node, self._session), cb=heard)
        try:
            await client.flush()
            await self._open(target)
            await self._both_ways()
        finally:
            with contextlib.suppress(NatsError, OSError):
                await self._send(sessions.HANG_UP)
                await subscription.unsubscribe()

    async def _open(self, target: tickets.Target) -> None:
        """A job is told to its node by another way, and may arrive there a little later."""
        subject = sessions.to_node(self._node, self._session)
        end = self._desk.clock.monotonic() + _ANSWER_SECONDS
        while True:
            reply = await self._desk.bus.client.request(
                subject, target.opens.model_dump_json().encode(), timeout=_ANSWER_SECONDS
            )
            try:
                opened = Opened.model_validate_json(reply.data)
            except ValidationError as broken:
                raise Unavailable("the node's answer cannot be read") from broken
            if opened.error is None:
                self._told_of = opened.tells
                return
            if target.opens.job is None or self._desk.clock.monotonic() >= end:
                raise Unavailable(opened.error)
            await self._desk.clock.sleep(0.1)

    async def _both_ways(self) -> None:
        works: list[Awaitable[None]] = [self._to_customer(), self._to_node(), self._mind(), self._keep_open()]
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await end(tasks)

    async def _to_customer(self) -> None:
        while True:
            frame = await self._said.get()
            self._waiting -= 1 + len(frame)
            kind = frame[:1]
            if kind == sessions.ALIVE:
                continue
            try:
                await self._socket.send_bytes(frame)
            except (WebSocketDisconnect, RuntimeError):
                return
            if kind == sessions.ENDED:
                await _close(self._socket, _ENDED, "")
                return
            await self._send(sessions.arrived(len(frame) - 1))

    async def _to_node(self) -> None:
        while True:
            # A process may be busy for hours, and reads on then.
            await self._room.wait()
            try:
                frame = await self._socket.receive_bytes()
            except KeyError as error:
                raise InvalidInput("a frame of text came; every frame is binary") from error
            except (WebSocketDisconnect, RuntimeError):
                return
            if frame[:1] in _TO_NODE and len(frame) <= _LARGEST_FRAME:
                await self._send(frame)
                if self._told_of:
                    self._under_way += sessions.weight(frame)
                if self._under_way >= sessions.WINDOW:
                    self._room.clear()

    async def _keep_open(self) -> None:
        """An output of nothing, now and then: proxies keep what is used, and who has left without a word, or
        is not read just now, is noticed only by what is sent to him."""
        while True:
            await self._desk.clock.sleep(sessions.ALIVE_SECONDS)
            try:
                await self._socket.send_bytes(sessions.OUTPUT)
            except (WebSocketDisconnect, RuntimeError):
                return

    async def _mind(self) -> None:
        while not self._desk.closing.is_set():
            await self._send(sessions.ALIVE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(sessions.ALIVE_SECONDS):
                    await self._desk.closing.wait()
            if self._desk.clock.monotonic() - self._heard_at > sessions.SILENT_SECONDS:
                raise Unavailable("the node is not heard any more")
        raise Unavailable("the platform is being restarted; come again")

    async def _send(self, frame: bytes) -> None:
        await self._desk.bus.client.publish(sessions.to_node(self._node, self._session), frame)


async def _close(socket: WebSocket, code: int, reason: str) -> None:
    # Whoever has left need not be told.
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        # A close frame has room for so many bytes of words.
        await socket.close(code, reason.encode()[:120].decode(errors="ignore"))
