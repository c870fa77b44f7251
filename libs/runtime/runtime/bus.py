"""The way to NATS: events by JetStream, reports and queries by plain NATS, buckets of desired state.

It reconnects by itself for ever and says so in one log line a change. FastStream carries the queries; events
are pulled by `delivery.py` (see decision D-2 in the README for why they and reports are not FastStream's).
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import nats
import orjson
import structlog
from contracts import errors
from contracts.errors import BerthError, Poison, ProviderFailed, Unavailable
from contracts.events import Event
from contracts.model import Model
from contracts.question import NodeQuery, Query
from contracts.reports import Report
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.errors import APIError
from pydantic import ValidationError

from runtime.bucket import Bucket
from runtime.permissions import INBOX, inbox_of, node_name
from runtime.service import Answer, Hear
from runtime.tasks import end
from runtime.telemetry import NO_TRACE, Telemetry

if TYPE_CHECKING:
    from faststream.nats import NatsBroker

log = structlog.get_logger("runtime.bus")

A = TypeVar("A", bound=Model)
R = TypeVar("R", bound=Report)
T = TypeVar("T")

TRACE_HEADER = "Berth-Trace"
_ID = "Nats-Msg-Id"
_LISTEN_BATCH = 500
_HEADERS = 8192


@dataclass(frozen=True, slots=True)
class Outgoing:
    id: str
    subject: str
    payload: bytes
    # The trace it belongs to: `Telemetry.carrier()`.
    carrier: str


def encryption(url: str, ca: Path | None) -> dict[str, Any]:
    """At a tls:// address nothing is said before the server has proved who it is: one in between that offers
    no encryption is told no password."""
    if not url.startswith("tls://"):
        return {}
    import ssl

    return {"tls": ssl.create_default_context(cafile=ca), "tls_handshake_first": True}


def _outlast_cancelled_flushes(client: Client) -> None:
    """A flush whose caller has left, or has waited for too long, leaves a place for its answer. nats-py fails
    when the answer comes, and reads no more; for half a minute nothing is heard, until its pings tell so."""
    answered = client._process_pong

    async def process_pong() -> None:
        if client._pongs and client._pongs[0].done():
            client._pongs[0] = asyncio.get_running_loop().create_future()
        await answered()

    client._process_pong = process_pong  # type: ignore[method-assign]


class Bus:
    def __init__(
        self, url: str, user: str, password: str | None, telemetry: Telemetry, ca: Path | None = None
    ) -> None:
        self._url = url
        self._ca = ca
        self.user = user
        self._password = password
        self._telemetry = telemetry
        self._client: Client | None = None
        self._broker: NatsBroker | None = None
        self._closing = False
        self._drains: list[asyncio.Task[None]] = []
        self._listened: list[tuple[str, str, Callable[[Msg], Awaitable[None]]]] = []

    # --- the connection ----------------------------------------------------------------------------

    def _options(self) -> dict[str, Any]:
        async def lost() -> None:
            self._gauge(0)
            if not self._closing:
                log.warning("nats lost", user=self.user)

        async def back() -> None:
            self._gauge(1)
            log.info("nats back", user=self.user)

        async def failed(error: Exception) -> None:
            # One line a change of state; the attempts in between say nothing new.
            log.debug("nats error", user=self.user, error=str(error))

        return {
            "servers": [self._url],
            "name": f"berth-{self.user}",
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.5,
            "connect_timeout": 3,
            # A node whose link was away hears what has changed when this notices, or when TCP tries again.
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "drain_timeout": 5,
            "disconnected_cb": lost,
            "reconnected_cb": back,
            "error_cb": failed,
            "inbox_prefix": inbox_of(self.user).encode(),
            **encryption(self._url, self._ca),
        }

    async def connect(self, *, with_broker: bool) -> None:
        """Returns once connected; tries for ever, with backoff."""
        pause = 0.2
        told = False
        while True:
            try:
                if with_broker:
                    from faststream.nats import NatsBroker
                    from faststream.nats.security import NatsUserPassword

                    broker = NatsBroker(
                        **self._options(),
                        security=NatsUserPassword(username=self.user, password=self._password or ""),
                        logger=None,
                        apply_types=False,
                    )
                    self._client = await broker.connect()
                    self._broker = broker
                else:
                    self._client = await nats.connect(
                        **self._options(), user=self.user, password=self._password
                    )
                break
            except (NatsError, OSError, TimeoutError) as error:
                if not told:
                    log.warning("nats does not answer", user=self.user, url=self._url, error=str(error))
                    told = True
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5)
        _outlast_cancelled_flushes(self._client)
        self._gauge(1)
        log.info("nats connected", user=self.user)

    async def close(self) -> None:
        self._closing = True
        await end(self._drains, patience=1)
        # Answers under way are finished; without a server there is nobody to give them to.
        with contextlib.suppress(NatsError, OSError, TimeoutError):
            if self._broker is not None:
                await self._broker.stop()
        if self._client is not None and not self._client.is_closed:
            with contextlib.suppress(NatsError, OSError, TimeoutError):
                await self._client.close()

    def _gauge(self, value: int) -> None:
        self._telemetry.connected.labels(self.user, "nats").set(value)

    @property
    def connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    @property
    def client(self) -> Client:
        if self._client is None:
            raise Unavailable("the message bus is not connected yet; try again")
        return self._client

    @property
    def largest(self) -> int:
        """The bytes a message may have that carries headers besides."""
        return self.client.max_payload - _HEADERS

    def jetstream(self) -> JetStreamContext:
        return self.client.jetstream(timeout=10)

    # --- events ------------------------------------------------------------------------------------

    async def publish(self, event: Event) -> None:
        """Straight to JetStream, for a service without a database; returns when the server has it on disk."""
        carrier = self._telemetry.carrier()
        await self.publish_all(
            [Outgoing(event.id, event.subject(), event.model_dump_json().encode(), carrier)]
        )

    async def publish_all(self, messages: list[Outgoing]) -> None:
        if not self.connected:
            raise Unavailable("the message bus is not connected")
        try:
            if len(messages) == 1 or not await self._publish_batch(messages):
                await asyncio.gather(*(self._publish_one(m) for m in messages))
        except (NatsError, APIError, TimeoutError, OSError) as error:
            raise Unavailable(f"the message bus did not take the events: {error}") from error

    def _headers(self, message: Outgoing) -> dict[str, str]:
        headers = {_ID: message.id}
        if message.carrier != NO_TRACE:
            headers[TRACE_HEADER] = message.carrier
        return headers

    async def _publish_one(self, message: Outgoing) -> None:
        await self.jetstream().publish(
            message.subject, message.payload, headers=self._headers(message), timeout=10
        )

    async def _publish_batch(self, messages: list[Outgoing]) -> bool:
        batch = uuid.uuid4().hex
        last = len(messages)
        for sequence, message in enumerate(messages, 1):
            headers = self._headers(message) | {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(sequence)}
            if sequence < last:
                await self.client.publish(message.subject, message.payload, headers=headers)
                continue
            headers["Nats-Batch-Commit"] = "1"
            reply = await self.client.request(message.subject, message.payload, timeout=10, headers=headers)
            answer = orjson.loads(reply.data)
            if "error" in answer:
                log.debug("batch refused, sending one by one", error=answer["error"])
                return False
        return True

    # --- reports and queries -------------------------------------------------------------------------

    async def report(self, report: Report, text: bytes | None = None) -> None:
        """Never waits for anybody; without a connection the report is simply not made. `text`: the whole of
        it in JSON, from one who has it already."""
        if self.connected:
            payload = report.model_dump_json().encode() if text is None else text
            await self.client.publish(report.subject(), payload)

    async def ask(self, query: Query[A], timeout: float = 5.0) -> A:
        carrier = self._telemetry.carrier()
        try:
            reply = await self.client.request(
                query.asked_at(),
                query.model_dump_json().encode(),
                timeout=timeout,
                headers={TRACE_HEADER: carrier},
            )
        except (NoRespondersError, NatsError, TimeoutError, OSError) as error:
            raise Unavailable(f"{query.owner} does not answer; try again") from error
        answer = orjson.loads(reply.data)
        if "error" in answer:
            raise _error_from(answer["error"])
        return type(query).answer.model_validate_json(reply.data)  # type: ignore[return-value]

    def answer(self, query: type[Query[Any]], answer: Answer) -> None:
        """Before `start_broker`. Replicas share the questions."""
        from faststream.nats import NatsMessage

        async def reply(message: NatsMessage) -> None:
            # The answer is published with the owner's rights: whoever may ask must not choose what is written
            # with them, be it a bucket's key or an order to the server.
            to = message.raw_message.reply
            if not to.startswith(_inbox_of(query, message.raw_message.subject)):
                log.warning("asked for an answer elsewhere", query=query.subject(), to=to)
                return
            await message.raw_message.respond(await answered(message))

        async def answered(message: NatsMessage) -> bytes:
            carrier = orjson.loads((message.headers or {}).get(TRACE_HEADER, "{}"))
            try:
                question = query.model_validate_json(message.body)
                if message.raw_message.subject != question.asked_at():
                    raise errors.InvalidInput("asked under a name that is not its own")
                with self._telemetry.span(query.subject(), carrier=carrier):
                    said = (await answer(question)).model_dump_json().encode()
                if len(said) > self.largest:
                    log.error("answer too large", query=query.subject(), bytes=len(said))
                    raise errors.TooLarge(f"the answer of {query.owner} is larger than the message bus takes")
                return said
            except ValidationError as error:
                return _error_bytes(
                    errors.InvalidInput(f"not a {query.__name__}: {error.error_count()} errors")
                )
            except BerthError as error:
                return _error_bytes(error)
            except Exception:
                log.exception("query failed", query=query.subject())
                return _error_bytes(ProviderFailed(f"{query.owner} failed; its log says why"))

        self._subscriber(query.heard_at(), reply, queue=query.owner)

    def listen(self, report: type[Report], hear: Hear, service: str) -> None:
        """Reports in batches of whatever has arrived; replicas share them. Not through the broker: that takes
        longer for a message than everything else that is done with it."""
        queue: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(maxsize=50_000)

        async def take(message: Msg) -> None:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait((message.subject, message.data))

        async def drain() -> None:
            while True:
                taken = [await queue.get()]
                while len(taken) < _LISTEN_BATCH and not queue.empty():
                    taken.append(queue.get_nowait())
                reports = []
                for subject, body in taken:
                    try:
                        understood = report.model_validate_json(body)
                    except ValidationError as error:
                        log.warning("report not understood", report=report.name, errors=error.error_count())
                        continue
                    # The server confines a node to its own subject; what it writes inside is checked here.
                    if understood.subject() == subject:
                        reports.append(understood)
                    else:
                        log.warning("report under another's name", subject=subject, says=understood.subject())
                if not reports:
                    continue
                try:
                    await hear(reports)
                except Exception:
                    # The next report says everything again.
                    log.exception("report not handled", report=report.name, service=service)
                    await asyncio.sleep(0.5)

        self._listened.append((f"{report.name}.>", service, take))
        self._drains.append(asyncio.create_task(drain(), name=f"listen {report.name}"))

    def _subscriber(self, subject: str, handler: Callable[..., Awaitable[Any]], queue: str) -> None:
        if self._broker is None:
            raise RuntimeError("connect(with_broker=True) comes first")
        # The handler takes the message as it came: its bytes are understood here, not by the broker.
        self._broker.subscriber(subject, queue=queue, decoder=_as_it_came, no_reply=True)(handler)

    async def start_broker(self) -> None:
        """When this returns the server knows what is listened to: what is said from now on is heard."""
        if self._broker is not None:
            await self._broker.start()
            while self._listened:
                subject, group, take = self._listened.pop()
                await self.client.subscribe(subject, queue=group, cb=take)
            await self.client.flush()

    @asynccontextmanager
    async def subscribe(self, report: type[R], token: str) -> AsyncIterator[asyncio.Queue[R]]:
        """Every report of one token, for this reader alone. One who does not keep up loses the oldest."""
        async with self.subscribe_as(report.model_validate_json, report, token) as queue:
            yield queue

    @asynccontextmanager
    async def subscribe_as(
        self, read: Callable[[bytes], T], report: type[Report], token: str, waiting: int = 10_000
    ) -> AsyncIterator[asyncio.Queue[T]]:
        """The same, of what `read` makes of each, with so many waiting at most."""
        queue: asyncio.Queue[T] = asyncio.Queue(maxsize=waiting)

        async def take(message: Any) -> None:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(read(message.data))

        subscription = await self.client.subscribe(f"{report.name}.{token}", cb=take)
        try:
            await self.client.flush()
            yield queue
        finally:
            with contextlib.suppress(NatsError, OSError):
                await subscription.unsubscribe()

    def bucket(self, name: str) -> Bucket:
        return Bucket(self, name)


def _inbox_of(query: type[Query[Any]], subject: str) -> str:
    """Where the answer may go: of a node's question, to the node it was asked under."""
    if issubclass(query, NodeQuery):
        return f"{inbox_of(node_name(subject.rpartition('.')[2]))}."
    return INBOX


async def _as_it_came(message: Any) -> Any:
    return message


def _error_bytes(error: BerthError) -> bytes:
    body = {"kind": type(error).__name__, "message": error.message, "details": error.details}
    return orjson.dumps({"error": body}, default=str)


def _error_from(body: dict[str, Any]) -> BerthError:
    kind = getattr(errors, body["kind"], Poison)
    error: BerthError = kind(body["message"], **body["details"])
    return error
