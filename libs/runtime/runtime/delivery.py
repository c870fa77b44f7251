"""How events arrive: pulled in batches, handled once, acknowledged after the commit (I2).

A batch is one transaction: its ids go into the inbox with the effects, so a message that comes again does
nothing. When the batch fails, each message gets a transaction of its own, and only the bad one is retried
with backoff; after `max_tries` it is parked with an alert, and its neighbours have long been done.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
import structlog
from contracts.errors import NotYet, Poison, disposition
from contracts.events import AlertRaised, Event, NodeEvent, event_for
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import APIError
from pydantic import ValidationError
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from runtime.bus import TRACE_HEADER, Bus
from runtime.parking import KEEP, alert
from runtime.service import Many, Service
from runtime.store import PLATFORM, Store, Tx
from runtime.streams import EVENT_AGE_DAYS, EVENT_STREAM, declare
from runtime.tables import InboxRow, ParkedRow
from runtime.telemetry import Stopwatch, Telemetry

log = structlog.get_logger("runtime.delivery")

ACK_SECONDS = 60
WAIT_SECONDS = 10
LONGEST_PAUSE = 60.0

_NEW = "insert into inbox (event_id) select unnest(%s::text[]) on conflict do nothing returning event_id"


@dataclass(frozen=True, slots=True)
class Delivered:
    message: Msg
    event: Event
    carrier: dict[str, str]

    @property
    def tries(self) -> int:
        return int(self.message.metadata.num_delivered or 1)


def backoff(tries: int, least: float = 0.0) -> float:
    """Half a second, doubling, with jitter so that what failed together does not come back together."""
    return max(least, min(LONGEST_PAUSE, 0.5 * 2.0 ** (tries - 1))) * random.uniform(0.8, 1.2)


class Delivery:
    def __init__(
        self,
        service: Service,
        store: Store,
        bus: Bus,
        telemetry: Telemetry,
        *,
        max_tries: int,
        batch: int,
    ) -> None:
        self._service = service
        self._store = store
        self._bus = bus
        self._telemetry = telemetry
        self._max_tries = max_tries
        self._batch = batch
        # As last counted; while there are none, nobody has to look for what is to be replayed.
        self._parked = 0

    # --- pulling -------------------------------------------------------------------------------------

    async def pull(self) -> None:
        """Never returns; whatever goes wrong with the server, it subscribes again."""
        lost = False
        while True:
            try:
                subscription = await self._subscribe()
                if lost:
                    log.info("events come again", service=self._service.name)
                    lost = False
                try:
                    await self._pull_from(subscription)
                finally:
                    # What was not handled comes again; left here, it would hold up the drain at the end.
                    await subscription.unsubscribe()
            except (NatsError, APIError, TimeoutError, OSError) as error:
                if not lost:
                    log.warning(
                        "events do not come", service=self._service.name, error=str(error) or repr(error)
                    )
                    lost = True
                await asyncio.sleep(1)

    async def _subscribe(self) -> JetStreamContext.PullSubscription:
        js = self._bus.jetstream()
        # Whatever the server has lost is made again: its streams are a copy, the truth is in Postgres.
        await declare(js)
        subjects = sorted(
            f"{e.name}.*" if issubclass(e, NodeEvent) else e.name for e in self._service.handles
        )
        config = ConsumerConfig(
            durable_name=self._service.name,
            filter_subjects=subjects,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_SECONDS,
            deliver_policy=DeliverPolicy.ALL,
            max_ack_pending=4 * self._batch,
            max_deliver=-1,
        )
        # Creates the consumer, or brings an older version's to this configuration.
        await js.add_consumer(EVENT_STREAM, config)
        return await js.pull_subscribe_bind(durable=self._service.name, stream=EVENT_STREAM)

    async def _pull_from(self, subscription: JetStreamContext.PullSubscription) -> None:
        waiting = 0
        # nats-py hands out a part-full batch only when its time is up; asking for exactly what the last
        # message said is waiting gives full batches under load and no delay without.
        while True:
            try:
                messages = await subscription.fetch(
                    max(1, min(waiting, self._batch)), timeout=WAIT_SECONDS if not waiting else 1
                )
            except TimeoutError:
                waiting = 0
                continue
            waiting = int(messages[-1].metadata.num_pending or 0)
            await self.deliver(messages)

    # --- handling ------------------------------------------------------------------------------------

    async def deliver(self, messages: Sequence[Msg]) -> None:
        delivered = []
        for message in messages:
            try:
                trace = (message.headers or {}).get(TRACE_HEADER)
                event = understand(message.subject, message.data)
                delivered.append(Delivered(message, event, orjson.loads(trace) if trace else {}))
            except Poison as error:
                await self._park(message, error)
        if not delivered:
            return
        watch = Stopwatch()
        try:
            await self._handle(delivered)
        except Exception as error:
            if len(delivered) == 1:
                await self._failed(delivered[0], error)
                return
            for one in delivered:
                await self.deliver([one.message])
            return
        self._telemetry.handling.labels(self._service.name).observe(watch.seconds)
        for one in delivered:
            await one.message.ack()

    async def _handle(self, delivered: list[Delivered]) -> None:
        async with self._store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            cursor = await connection.execute(_NEW, ([d.event.id for d in delivered],), prepare=True)
            new = {row[0] for row in await cursor.fetchall()}
            fresh: list[Delivered] = []
            for one in delivered:
                if one.event.id in new:
                    new.discard(one.event.id)
                    fresh.append(one)
            for group in _runs(fresh):
                await self._call(group, tx)
        for name, count in Counter(one.event.name for one in delivered).items():
            self._count(name, "handled", count)

    async def _call(self, group: list[Delivered], tx: Tx) -> None:
        """One kind of event in a row: together where the handler takes many, else one after the other."""
        handler = self._service.handles[type(group[0].event)]
        if isinstance(handler, Many):
            with self._telemetry.span(f"{group[0].event.name} x{len(group)}", carrier=group[0].carrier):
                await handler.handler([one.event for one in group], tx)
            return
        for one in group:
            with (
                structlog.contextvars.bound_contextvars(
                    service=self._service.name, kind=one.event.name, event_id=one.event.id
                ),
                self._telemetry.span(one.event.name, carrier=one.carrier, service=self._service.name),
            ):
                await handler(one.event, tx)

    async def _failed(self, one: Delivered, error: Exception) -> None:
        verdict = disposition(error)
        if verdict.outcome == "drop":
            log.info("dropped", service=self._service.name, event_id=one.event.id, why=str(error))
            self._count(one.event.name, "dropped")
            await one.message.ack()
            return
        if verdict.outcome == "park" or one.tries >= self._max_tries:
            await self._park(one.message, error)
            return
        pause = backoff(one.tries, error.after if isinstance(error, NotYet) else 0.0)
        self._count(one.event.name, "retried")
        known = verdict.code != "internal_error"
        log.warning(
            "will be tried again",
            service=self._service.name,
            kind=one.event.name,
            event_id=one.event.id,
            tries=one.tries,
            after=round(pause, 2),
            error=str(error),
            exc_info=None if known else error,
        )
        await one.message.nak(delay=pause)

    def _count(self, kind: str, outcome: str, count: int = 1) -> None:
        self._telemetry.handled.labels(self._service.name, kind, outcome).inc(count)

    # --- parking ---------------------------------------------------------------------------------------

    async def _park(self, message: Msg, error: Exception) -> None:
        """Kept whole, beside its error, until an operator replays or drops it: `berth parked`."""
        event_id = (message.headers or {}).get("Nats-Msg-Id") or f"seq-{message.metadata.sequence.stream}"
        try:
            async with self._store.transaction(PLATFORM) as tx:
                connection = await tx.connection()
                headers = orjson.dumps(dict(message.headers or {})).decode()
                words = f"{type(error).__name__}: {error}"
                tries = message.metadata.num_delivered or 1
                row = (event_id, message.subject, message.data, headers, words, tries)
                await connection.execute(KEEP, row)
                if message.subject != AlertRaised.name:
                    tx.publish(alert(self._service.name, message.subject, event_id, str(error)))
        except Exception:
            log.exception("could not park", service=self._service.name, event_id=event_id)
            await message.nak(delay=backoff(int(message.metadata.num_delivered or 1)))
            return
        self._parked += 1
        log.error(
            "parked", service=self._service.name, subject=message.subject, event_id=event_id, error=str(error)
        )
        await message.ack()

    async def replay(self) -> bool:
        """One parked message an operator asked to see handled again; what fails stays parked."""
        if not self._parked:
            return False
        async with self._store.transaction(PLATFORM) as tx:
            row = await tx.one(
                select(ParkedRow).where(ParkedRow.replay).order_by(ParkedRow.parked_at).limit(1)
            )
        if row is None:
            return False
        try:
            event = understand(row.subject, row.payload)
            handler = self._service.handles.get(type(event))
            async with self._store.transaction(PLATFORM) as tx:
                await tx.execute(delete(ParkedRow).where(ParkedRow.event_id == row.event_id))
                if handler is None:
                    # Its own, which the bus did not take.
                    tx.publish(event)
                    return True
                await tx.execute(insert(InboxRow).values(event_id=event.id).on_conflict_do_nothing())
                if isinstance(handler, Many):
                    await handler.handler([event], tx)
                else:
                    await handler(event, tx)
        except Exception as error:
            log.warning("replay failed", service=self._service.name, event_id=row.event_id, error=str(error))
            async with self._store.transaction(PLATFORM) as tx:
                await tx.execute(
                    update(ParkedRow)
                    .where(ParkedRow.event_id == row.event_id)
                    .values(replay=False, tries=ParkedRow.tries + 1, error=f"{type(error).__name__}: {error}")
                )
        else:
            log.info("replayed", service=self._service.name, event_id=row.event_id)
        return True

    async def count_parked(self) -> None:
        async with self._store.transaction(PLATFORM) as tx:
            parked = (await tx.execute(select(func.count()).select_from(ParkedRow))).scalar_one()
            waiting = (await tx.execute(text("select count(*) from outbox"))).scalar_one()
        self._parked = parked
        self._telemetry.parked.labels(self._service.name).set(parked)
        self._telemetry.waiting.labels(self._service.name).set(waiting)

    async def forget_handled(self) -> None:
        """An inbox row is needed for as long as the stream can deliver its event again."""
        async with self._store.transaction(PLATFORM) as tx:
            age = text(f"interval '{EVENT_AGE_DAYS + 1} days'")
            await tx.execute(delete(InboxRow).where(InboxRow.handled_at < func.now() - age))


def understand(subject: str, payload: bytes) -> Event:
    kind = event_for(subject)
    if kind is None:
        raise Poison(f"no event is called {subject}")
    try:
        event = kind.model_validate_json(payload)
    except ValidationError as error:
        raise Poison(f"not a {kind.name}: {error}") from error
    # The server confines a node to its own subjects; what it writes inside is checked here.
    if event.subject() != subject:
        raise Poison(f"{subject} carries an event of {event.subject()}")
    return event


def _runs(delivered: list[Delivered]) -> list[list[Delivered]]:
    runs: list[list[Delivered]] = []
    for one in delivered:
        if runs and type(runs[-1][0].event) is type(one.event):
            runs[-1].append(one)
        else:
            runs.append([one])
    return runs
