"""Terminals to processes of this node: opened by the gateway alone, over subjects of this node and session.

A conversation ends with the process, or ends the process when the customer hangs up or nobody is heard of
him any more. Output is sent no faster than it arrives, and what is told the process no faster than it reads:
who does not read, stops the other, and fills nobody's memory.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog
from contracts import sessions
from contracts.errors import BerthError
from contracts.sessions import Ended, Open, Opened
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError
from runtime.clock import Clock
from runtime.tasks import end

from node_agent.endings import words
from node_agent.engine import Session
from node_agent.site import Site

log = structlog.get_logger("node-agent.exec")

_INTERRUPT, _END_OF_INPUT = b"\x03", b"\x04"
_MOST = 200
# What the process has not read yet. Who keeps to the window stays far below.
_WAITING = 4 * sessions.WINDOW
_LAST_WORD_SECONDS = 2.0
_CLOSED = "its terminal was closed"


class Conversation:
    """One session as the node sees it."""

    def __init__(self, opened: Open, clock: Clock, send: Callable[[bytes], Awaitable[None]]) -> None:
        self.opened = opened
        self._clock = clock
        self._send = send
        self._heard: asyncio.Queue[bytes] = asyncio.Queue()
        self._waiting = 0
        self._heard_at = clock.monotonic()
        self._under_way = 0
        self._room = asyncio.Event()
        self._room.set()
        self.gone = asyncio.Event()
        # Why, in words.
        self.left = _CLOSED

    def hear(self, frame: bytes) -> None:
        self._heard_at = self._clock.monotonic()
        kind, payload = frame[:1], frame[1:]
        if kind == sessions.ARRIVED:
            self._under_way = max(0, self._under_way - int.from_bytes(payload, "big"))
            if self._under_way < sessions.WINDOW:
                self._room.set()
        elif kind == sessions.HANG_UP:
            self.gone.set()
        elif kind != sessions.ALIVE:
            self._waiting += sessions.weight(frame)
            if self._waiting <= _WAITING:
                self._heard.put_nowait(frame)
            else:
                self.left = "it was told more than it reads"
                self.gone.set()

    async def carry(self, session: Session) -> bool:
        """Both ways, until the process has said all: true; or until nobody is there any more: false."""
        saying = asyncio.create_task(self._say(session), name="session saying")
        others = [
            asyncio.create_task(self._tell(session), name="session telling"),
            asyncio.create_task(self._mind(), name="session minding"),
        ]
        leaving = asyncio.create_task(self.gone.wait(), name="session leaving")
        try:
            await asyncio.wait({saying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if saying.done():
                saying.result()
            return saying.done()
        finally:
            await end((saying, leaving, *others))

    async def end(self, ended: Ended) -> None:
        await self._reach(sessions.ENDED + ended.model_dump_json().encode())
        self.gone.set()

    async def _reach(self, frame: bytes) -> None:
        try:
            await self._send(frame)
        except NatsError as error:
            # The bus takes no more of it: nobody is there whom it could reach.
            log.info("a session is cut off", error=str(error))
            self.gone.set()

    async def _say(self, session: Session) -> None:
        while (chunk := await session.read()) is not None:
            kind = sessions.ERRORS if chunk.stream == "stderr" else sessions.OUTPUT
            for start in range(0, len(chunk.data), sessions.CHUNK):
                part = chunk.data[start : start + sessions.CHUNK]
                await self._room.wait()
                await self._reach(kind + part)
                self._under_way += len(part)
                if self._under_way >= sessions.WINDOW:
                    self._room.clear()

    async def _tell(self, session: Session) -> None:
        while True:
            frame = await self._heard.get()
            kind, payload = frame[:1], frame[1:]
            if kind == sessions.INPUT:
                await session.write(payload)
            elif kind == sessions.END_OF_INPUT:
                await session.end_input()
            elif kind == sessions.RESIZE and (size := sessions.read_size(payload)) is not None:
                # The process may have ended since.
                with contextlib.suppress(BerthError):
                    await session.resize(*size)
            read = sessions.weight(frame)
            self._waiting -= read
            await self._reach(sessions.arrived(read))

    async def _mind(self) -> None:
        while True:
            await self._clock.sleep(sessions.ALIVE_SECONDS)
            await self._reach(sessions.ALIVE)
            if self._clock.monotonic() - self._heard_at > sessions.SILENT_SECONDS:
                self.gone.set()


class Sessions:
    def __init__(
        self,
        site: Site,
        client: Callable[[], Client],
        attach: Callable[[Conversation], Awaitable[str | None]],
    ) -> None:
        """`attach` hands a conversation to the job it names; why not, where it cannot."""
        self._site = site
        self._client = client
        self._attach = attach
        self._open: dict[str, Conversation] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Never ends but by the error of the connection."""
        client = self._client()
        subscription = await client.subscribe(sessions.to_node(self._site.node, "*"), cb=self._heard)
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    async def close(self) -> None:
        for conversation in self._open.values():
            conversation.gone.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _heard(self, message: Msg) -> None:
        name = message.subject.rpartition(".")[2]
        if not message.reply:
            if name in self._open:
                self._open[name].hear(message.data)
            return
        task = asyncio.create_task(self._begin(name, message), name=f"session {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, name: str, message: Msg) -> None:
        client = self._client()

        async def answer(error: str | None) -> None:
            try:
                await client.publish(
                    message.reply, Opened(error=error, tells=True).model_dump_json().encode()
                )
            except NatsError as lost:
                # Who has asked hears nothing, and hangs up.
                log.info("an answer was not sent", session=name, error=str(lost))

        async def send(frame: bytes) -> None:
            await client.publish(sessions.from_node(self._site.node, name), frame)

        try:
            opened = Open.model_validate_json(message.data)
        except ValidationError:
            await answer("what was asked cannot be read")
            return
        if name in self._open or len(self._open) >= _MOST:
            await answer("the node has too many terminals open; try again later")
            return
        conversation = Conversation(opened, self._site.clock, send)
        self._open[name] = conversation
        try:
            if opened.verb == "run":
                why = await self._attach(conversation)
                await answer(why)
                if why is None:
                    await conversation.gone.wait()
            else:
                await self._execute(conversation, answer)
        except (BerthError, OSError) as error:
            log.warning("a session broke", session=name, error=str(error))
            await conversation.end(Ended(words=f"the session broke: {error}"))
        finally:
            # Whoever carries it lets go of it.
            conversation.gone.set()
            del self._open[name]

    async def _execute(
        self, conversation: Conversation, answer: Callable[[str | None], Awaitable[None]]
    ) -> None:
        opened = conversation.opened
        instance = await self._instance(opened)
        if instance is None:
            await answer(f"{opened.slot} does not run here at the moment")
            return
        try:
            environment = {"TERM": "xterm-256color"} if opened.terminal else {}
            session = await self._site.engine.execute(
                instance, opened.command, environment, terminal=opened.terminal
            )
        except BerthError as error:
            await answer(error.message)
            return
        try:
            await answer(None)
            if await conversation.carry(session):
                code = await session.exit_code()
                await conversation.end(Ended(exit_code=code, words=words(code) if code else None))
            else:
                await conversation.end(Ended(words=conversation.left))
                if opened.terminal:
                    # The engine lets it run on when nobody listens: it is told what a closed window tells.
                    # One that reads nothing does not hear it.
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LAST_WORD_SECONDS):
                            await session.write(_INTERRUPT + _END_OF_INPUT)
            await session.end_input()
        finally:
            await session.close()

    async def _instance(self, opened: Open) -> str | None:
        for found in await self._site.engine.instances(opened.workload):
            identity = found.identity
            if (
                (identity.slot, identity.organization) == (opened.slot, opened.organization)
                and found.state == "running"
                and self._site.tenures.admitted(identity.instance)
            ):
                return identity.instance
        return None
