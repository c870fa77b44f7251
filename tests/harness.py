"""Services under test, on a real Postgres and a real NATS: an own database each, and an empty stream.

`Harness.start("billing")` runs the service as the platform would; `publish` and `events` play and watch
everybody else; `eventually` waits for what asynchronous parts promise.
"""

import asyncio
import ipaddress
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import nats
import psycopg
from contracts.events import Event, event_for
from contracts.question import Query
from embedded.nats import Nats
from embedded.postgres import Postgres
from nats.aio.client import Client
from nats.js.api import DeliverPolicy
from nats.js.errors import APIError, NotFoundError
from psycopg import sql
from pydantic import SecretStr
from runtime.bus import Bus
from runtime.host import Host
from runtime.issuer import Issuer, cutter_password
from runtime.migrations import migrate
from runtime.permissions import CUTTER, SERVICES, inbox_of, nats_users, render
from runtime.run import entry_points, make_runtime
from runtime.runtime import Runtime
from runtime.secrets import derive
from runtime.service import Answer, Service
from runtime.settings import RuntimeSettings
from runtime.streams import BUCKETS, EVENT_STREAM, declare
from runtime.telemetry import Telemetry

T = TypeVar("T")
E = TypeVar("E", bound=Event)

SECRET = "tests-only-9f2b7c1e4d8a6053-tests-only"
TEMPLATE = "template_berth"
JOURNEYS = ("journey", "examples", "sources", "crash", "outlive", "sleep", "hostile")
NODES = ("local", "n1", "n2", "n3", *JOURNEYS, "bench")
EVERYTHING = "tests"


def address_of(network: Any) -> str:
    """The machine's own address in a network of the engine, which does not tell it of a bridge that was there
    before it."""
    config = network["IPAM"]["Config"][0]
    return str(config.get("Gateway") or next(ipaddress.ip_network(config["Subnet"]).hosts()))


def _ports() -> Iterator[int]:
    """Below those the kernel gives to connections: such a one would be taken before its server listens."""
    low, high = 21_000, 31_000
    start = low + os.getpid() * 61 % (high - low)
    for port in itertools.chain(range(start, high), range(low, start)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


_free = _ports()


def free_port() -> int:
    """A port nobody listens on, never the same one twice."""
    return next(_free)


def bus_config() -> str:
    """The platform's users, and one that may do everything: the tests play every part."""
    config = nats_users(bus_password, nodes=NODES, issuer=Issuer(derive(SECRET, "nats/issuer")).public)
    authorization = config["authorization"]
    authorization["users"].append({"user": EVERYTHING, "password": SECRET})
    authorization["auth_callout"]["auth_users"].append(EVERYTHING)
    return render(config)


def bus_password(user: str) -> str:
    issuer = derive(SECRET, "nats/issuer")
    return cutter_password(issuer) if user == CUTTER else derive(SECRET, f"nats/{user}")


@dataclass
class Servers:
    postgres: Postgres
    nats: Nats

    def create_database(self, name: str) -> None:
        with psycopg.connect(self.postgres.url(database="postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )
            connection.execute(
                sql.SQL("create database {} template {}").format(
                    sql.Identifier(name), sql.Identifier(TEMPLATE)
                )
            )

    def drop_database(self, name: str) -> None:
        with psycopg.connect(self.postgres.url(database="postgres"), autocommit=True) as connection:
            connection.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )


@contextmanager
def servers(folder: Path, database: str = TEMPLATE, public_host: str | None = None) -> Iterator[Servers]:
    """One migrated database for a whole run; by default the one that each test copies its own from."""
    postgres = Postgres(folder / "postgres", free_port(), SECRET)
    bus = Nats(folder / "nats", free_port(), bus_config(), public_host)
    try:
        postgres.start()
        bus.start()
        postgres.wait_ready()
        bus.wait_ready()
        postgres.create_database(database)
        migrate(
            postgres.url(database=database),
            [
                (name, entry_points()[name].value.partition(".")[0], derive(SECRET, f"database/{name}"))
                for name in SERVICES
            ],
        )
        yield Servers(postgres, bus)
    finally:
        bus.stop()
        postgres.stop()


class ShiftedClock:
    """The real clock, which a test may put forward."""

    def __init__(self) -> None:
        self._shift = timedelta()

    def advance(self, seconds: float) -> None:
        self._shift += timedelta(seconds=seconds)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._shift

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self._shift.total_seconds()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Anybody(Bus):
    inbox = EVERYTHING

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "inbox_prefix": inbox_of(self.inbox).encode()}


@dataclass
class Harness:
    settings: RuntimeSettings
    clock: ShiftedClock
    telemetry: Telemetry
    client: Client
    hosts: dict[str, Host] = field(default_factory=dict)
    _buses: list[Bus] = field(default_factory=list)
    _runtimes: list[Runtime] = field(default_factory=list)

    # --- services ------------------------------------------------------------------------------------

    def runtime(self, name: str, **settings: Any) -> Runtime:
        chosen = self.settings.model_copy(update=settings)
        return make_runtime(name, chosen, self.clock, self.telemetry)

    async def start(
        self,
        name: str,
        create: Callable[[Runtime], Service] | None = None,
        *,
        alias: str | None = None,
        **settings: Any,
    ) -> Host:
        """The service as the platform runs it, or as `create` wires it; `alias` names a second replica."""
        runtime = self.runtime(name, **settings)
        host = Host(runtime, (create or entry_points()[name].load())(runtime))
        await host.start()
        self.hosts[alias or name] = host
        return host

    async def stop(self, name: str) -> None:
        await self.hosts.pop(name).stop()

    async def store(self, name: str) -> Runtime:
        """A connected runtime of a service that does not run: to look into its tables, to play its part."""
        runtime = self.runtime(name)
        await runtime.bus.connect(with_broker=True)
        if runtime.has_store:
            await runtime.store.open()
        self._runtimes.append(runtime)
        return runtime

    async def answers(self, query: type[Query[Any]], answer: Answer) -> None:
        """Plays the owner of a query."""
        bus = await self.everybody()
        bus.answer(query, answer)
        await bus.start_broker()

    async def everybody(self, inbox: str = EVERYTHING) -> Bus:
        """A connection that may say and hear everything; with the inbox of another, who asks for himself."""
        bus = _Anybody(self.settings.nats_url, EVERYTHING, SECRET, self.telemetry)
        bus.inbox = inbox
        await bus.connect(with_broker=True)
        self._buses.append(bus)
        return bus

    # --- messages ------------------------------------------------------------------------------------

    async def publish(self, *events: Event) -> None:
        for event in events:
            await self.client.jetstream().publish(
                event.subject(), event.model_dump_json().encode(), headers={"Nats-Msg-Id": event.id}
            )

    async def publish_again(self, event: Event) -> None:
        """The same event once more, past the server's own dropping of doubles."""
        await self.client.jetstream().publish(event.subject(), event.model_dump_json().encode())

    async def events(self, kind: type[E]) -> list[E]:
        """Every event of a kind published so far."""
        js = self.client.jetstream()
        subscription = await js.subscribe(
            f"{kind.name}.>" if kind.name in _node_events() else kind.name,
            stream=EVENT_STREAM,
            ordered_consumer=True,
            deliver_policy=DeliverPolicy.ALL,
        )
        found: list[E] = []
        try:
            info = await subscription.consumer_info()
            assert info.num_pending is not None
            assert info.delivered is not None
            total = info.num_pending + info.delivered.consumer_seq
            while len(found) < total:
                message = await subscription.next_msg(timeout=2)
                parsed = event_for(message.subject)
                assert parsed is kind
                found.append(kind.model_validate_json(message.data))
        finally:
            await subscription.unsubscribe()
        return found

    async def event(
        self, kind: type[E], where: Callable[[E], bool] = lambda _: True, seconds: float = 30
    ) -> E:
        """The first event of a kind that fits, once it is there."""

        async def look() -> E | None:
            return next((e for e in await self.events(kind) if where(e)), None)

        return await eventually(look, seconds=seconds, what=kind.name)

    async def settle(self, seconds: float = 30) -> None:
        """Until every outbox is empty and every consumer has handled what there is."""

        async def quiet() -> bool:
            for host in self.hosts.values():
                if host.runtime.has_store and await host.runtime.store.read("select 1 from outbox limit 1"):
                    return False
                if host.service.handles:
                    try:
                        info = await self.client.jetstream().consumer_info(EVENT_STREAM, host.service.name)
                    except NotFoundError:
                        return False
                    if info.num_pending or info.num_ack_pending:
                        return False
            return True

        # A consumer learns of a new message a moment after its publisher has the ack: one look is not enough.
        looks = 0

        async def at_rest() -> bool:
            nonlocal looks
            looks = looks + 1 if await quiet() else 0
            return looks >= 4

        await eventually(at_rest, seconds=seconds, every=0.025, what="everything handled")

    async def close_services(self) -> None:
        for name in reversed(list(self.hosts)):
            await self.stop(name)

    async def close(self) -> None:
        await self.close_services()
        for bus in self._buses:
            await bus.close()
        for runtime in self._runtimes:
            await runtime.bus.close()
            if runtime.has_store:
                await runtime.store.close()
        await self.client.close()
        self.telemetry.close()


def _node_events() -> set[str]:
    from contracts.events import EVENTS, NodeEvent

    return {e.name for e in EVENTS if issubclass(e, NodeEvent)}


async def eventually(
    look: Callable[[], Awaitable[T | None]], *, seconds: float = 30, what: str = "it", every: float = 0.02
) -> T:
    """What `look` finds as soon as it finds something true; fails with `what` after `seconds`."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        found = await look()
        if found:
            return found
        if loop.time() > end:
            raise AssertionError(f"{what} did not come within {seconds} s (last: {found!r})")
        await asyncio.sleep(every)


async def empty_bus(client: Client) -> None:
    js = client.jetstream()
    for stream in (EVENT_STREAM, *(f"KV_{bucket}" for bucket in BUCKETS)):
        try:
            await js.delete_stream(stream)
        except NotFoundError:
            continue

    async def declared() -> bool:
        try:
            await declare(js)
        except APIError:
            # The server is still taking the old stream's files away.
            return False
        return True

    await eventually(declared, what="empty streams")


async def open_harness(running: Servers, database: str, folder: Path, exporter: Any = None) -> Harness:
    running.create_database(database)
    settings = RuntimeSettings(
        state=folder,
        secret=SecretStr(SECRET),
        database_url=f"postgresql://127.0.0.1:{running.postgres.port}/{database}",
        nats_url=running.nats.url,
        max_tries=4,
        database_connections=6,
    )
    client = await nats.connect(running.nats.url, user=EVERYTHING, password=SECRET)
    await empty_bus(client)
    return Harness(settings, ShiftedClock(), Telemetry(exporter), client)
