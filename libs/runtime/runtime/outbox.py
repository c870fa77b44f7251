"""The relay: sends what committed transactions left in the outbox, and deletes a row only with its ack.

Rows go as one atomic batch: the server makes it durable with one fsync, where single messages cost one
each. A batch that holds a message the server has seen is refused whole; then each is sent by itself and
the server drops the double. A message the server would never take is parked, so that those behind it leave.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog
from contracts.errors import Unavailable
from psycopg import AsyncConnection

from runtime.bus import Bus, Outgoing
from runtime.parking import KEEP, alert
from runtime.store import Store
from runtime.telemetry import Telemetry

log = structlog.get_logger("runtime.outbox")

_ANY = "select exists (select from outbox)"
_TAKE = (
    "delete from outbox where id in "
    "(select id from outbox order by id limit %s for update skip locked) "
    "returning id, event_id, subject, payload, headers::text"
)


@dataclass(slots=True)
class Relay:
    service: str
    store: Store
    bus: Bus
    telemetry: Telemetry
    batch: int
    _told: bool = False

    def tell(self) -> None:
        """There are events, and `send` is called next."""
        self._told = True

    async def send(self) -> bool:
        """True when there may be more."""
        if not self.bus.connected:
            return False
        told, self._told = self._told, False
        if not told and not (await self.store.read(_ANY))[0][0]:
            return False
        async with self.store.direct() as connection:
            cursor = await connection.execute(_TAKE, (self.batch,), prepare=True, binary=True)
            rows = await cursor.fetchall()
            if not rows:
                return False
            rows.sort()
            messages = [Outgoing(*row) for _, *row in rows]
            largest = self.bus.largest
            await self.bus.publish_all(
                [m if len(m.payload) <= largest else await self._park(m, connection) for m in messages]
            )
        self.telemetry.relayed.labels(self.service).inc(len(rows))
        self._told = self._told or len(rows) == self.batch
        return self._told

    async def _park(self, message: Outgoing, connection: AsyncConnection[Any]) -> Outgoing:
        """The alert, which leaves in its place."""
        error = f"{len(message.payload)} bytes are more than the message bus takes ({self.bus.largest})"
        headers = f'{{"Nats-Msg-Id": "{message.id}"}}'
        await connection.execute(KEEP, (message.id, message.subject, message.payload, headers, error, 0))
        log.error("parked", service=self.service, subject=message.subject, event_id=message.id, error=error)
        told = alert(self.service, message.subject, message.id, error)
        return Outgoing(told.id, told.subject(), told.model_dump_json().encode(), message.carrier)

    async def drain(self, seconds: float) -> None:
        """At the end of a process: send what is left, as long as somebody listens."""
        try:
            async with asyncio.timeout(seconds):
                while await self.send():
                    pass
        except (TimeoutError, Unavailable) as error:
            log.info("outbox kept for the next start", service=self.service, why=str(error) or "time ran out")
