"""Events per second from `tx.publish` to their committed effect, through the real chassis: outbox, relay,
JetStream that flushes before it acknowledges, delivery with inbox, a row in Postgres for each.

Against the same chassis moving one message at a time (one transaction, one publish, one delivery each);
and against bare nats-py without any database on the same stream, by its fastest calls: publishes pipelined
in windows of 500, pulled in batches of 500, decoded, each acknowledged.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import nats
import uvloop
from contracts.events import Event, WalletChanged
from contracts.ids import new_id
from contracts.money import Money
from runtime.host import BATCH, Host
from runtime.service import Service, many
from runtime.store import PLATFORM, Tx
from runtime.streams import EVENT_STREAM
from runtime.telemetry import configure_logging
from sqlalchemy import text

from bench.pairs import at_least, at_most, in_turn, ratio, report
from bench.scratch import scratch
from tests.harness import EVERYTHING, SECRET, Harness, Servers, open_harness, servers

EVENTS = 20_000
EVENTS_ONE_BY_ONE = 1_000
WINDOW = 500

T = TypeVar("T")


def changes(count: int) -> list[WalletChanged]:
    organization = new_id("org")
    return [
        WalletChanged(
            organization=organization,
            sequence=number,
            balance=Money(micros=1_000_000 - number, currency="USD"),
        )
        for number in range(count)
    ]


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


@dataclass
class Effects:
    """A handler that writes a row for each event, and knows when all have been committed."""

    expected: int
    committed: int = 0
    all_there: asyncio.Event = field(default_factory=asyncio.Event)

    async def write(self, events: list[WalletChanged], tx: Tx) -> None:
        connection = await tx.connection()
        await connection.execute(
            "insert into effect select * from unnest(%s::text[], %s::bigint[], %s::bigint[])",
            ([e.id for e in events], [e.sequence for e in events], [e.balance.micros for e in events]),
        )
        tx.after_commit(partial(self._add, len(events)))

    def _add(self, count: int) -> None:
        self.committed += count
        if self.committed >= self.expected:
            self.all_there.set()


@dataclass
class Bench:
    running: Servers
    folder: Path
    lost: int = 0
    doubled: int = 0

    async def batched(self) -> float:
        return await self._through_the_chassis(EVENTS, BATCH)

    async def one_by_one(self) -> float:
        return await self._through_the_chassis(EVENTS_ONE_BY_ONE, 1)

    async def _through_the_chassis(self, count: int, batch: int) -> float:
        """Billing publishes, the gateway handles; both begin with empty tables and an empty stream."""
        harness = await open_harness(self.running, "bench", self.folder)
        effects = Effects(count)
        try:
            store = (await harness.store("gateway")).store
            async with store.transaction(PLATFORM) as tx:
                await tx.execute(text("create table effect (event text, sequence bigint, balance bigint)"))
            billing = await self._start(harness, Service(name="billing", publishes=(WalletChanged,)), batch)
            await self._start(
                harness, Service(name="gateway", handles={WalletChanged: many(effects.write)}), batch
            )
            events = changes(count)
            started = time.perf_counter()
            for chunk in chunks(events, batch):
                async with billing.runtime.store.transaction(PLATFORM) as tx:
                    for event in chunk:
                        tx.publish(event)
            async with asyncio.timeout(120):
                await effects.all_there.wait()
            seconds = time.perf_counter() - started
            await harness.settle()
            ((rows, different),) = await store.read(
                "select count(*), count(distinct event) from gateway.effect"
            )
            self.lost += count - different
            self.doubled += rows - different
            return count / seconds
        finally:
            await harness.close()

    async def _start(self, harness: Harness, service: Service, batch: int) -> Host:
        host = Host(harness.runtime(service.name), service, batch=batch)
        await host.start()
        harness.hosts[service.name] = host
        return host

    async def bare(self) -> float:
        harness = await open_harness(self.running, "bench", self.folder)
        publisher = await nats.connect(self.running.nats.url, user=EVERYTHING, password=SECRET)
        try:
            events: list[Event] = list(changes(EVENTS))
            js = publisher.jetstream(timeout=60)
            pulled = await harness.client.jetstream().pull_subscribe(
                WalletChanged.name, durable="bare", stream=EVENT_STREAM
            )

            async def publish() -> None:
                for window in chunks(events, WINDOW):
                    await asyncio.gather(
                        *(
                            js.publish(
                                e.subject(), e.model_dump_json().encode(), headers={"Nats-Msg-Id": e.id}
                            )
                            for e in window
                        )
                    )

            async def pull() -> None:
                got = 0
                while got < len(events):
                    try:
                        messages = await pulled.fetch(WINDOW, timeout=1)
                    except TimeoutError:
                        continue
                    for message in messages:
                        WalletChanged.model_validate_json(message.data)
                        await message.ack()
                    got += len(messages)

            started = time.perf_counter()
            await asyncio.gather(publish(), pull())
            return len(events) / (time.perf_counter() - started)
        finally:
            await publisher.close()
            await harness.close()


async def main() -> int:
    configure_logging("warning")
    with scratch() as folder, servers(folder) as running:
        bench = Bench(running, folder)
        batched, one_by_one, bare = await in_turn(bench.batched, bench.one_by_one, bench.bare)
    batching, batching_spread = ratio(batched, one_by_one)
    chassis, chassis_spread = ratio(batched, bare)
    return report(
        [
            at_least("events.batched_to_one_by_one", batching, 12, batching_spread),
            at_least("events.chassis_to_bare_nats", chassis, 0.5, chassis_spread),
            at_most("events.lost", bench.lost, 0),
            at_most("events.doubled", bench.doubled, 0),
        ]
    )


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
