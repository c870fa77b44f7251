"""The relay: sends what committed transactions left in the outbox, and deletes a row only with its ack.

Rows go as one atomic batch: the server makes it durable with one fsync, where single messages cost one
each. A batch that holds a message the server has seen is refused whole; then each is sent by itself and
the server drops the double.
"""

import asyncio
from dataclasses import dataclass

import structlog
from contracts.errors import Unavailable

from runtime.bus import Bus, Outgoing
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
            messages = [
                Outgoing(event_id, subject, payload, carrier)
                for _, event_id, subject, payload, carrier in rows
            ]
            await self.bus.publish_all(messages)
        self.telemetry.relayed.labels(self.service).inc(len(rows))
        self._told = self._told or len(rows) == self.batch
        return self._told

    async def drain(self, seconds: float) -> None:
        """At the end of a process: send what is left, as long as somebody listens."""
        try:
            async with asyncio.timeout(seconds):
                while await self.send():
                    pass
        except (TimeoutError, Unavailable) as error:
            log.info("outbox kept for the next start", service=self.service, why=str(error) or "time ran out")
