"""A service's Postgres: one schema, one role, transactions that only the chassis commits.

A transaction is opened for an organization, whose rows alone row-level security then shows, or for the
platform. Events published in it leave with the commit or not at all (I1).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog
from contracts.errors import Unavailable
from contracts.events import Event
from psycopg import AsyncConnection, OperationalError
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from sqlalchemy import URL, Executable, Result, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolExhausted
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.sql.selectable import TypedReturnsRows

from runtime.telemetry import NO_TRACE, Telemetry

log = structlog.get_logger("runtime.store")

# Sees every organization's rows: for handlers and loops, never for a request of a customer.
PLATFORM = "*"

# Connections a service keeps when it has nothing to do.
KEPT = 2

Row = TypeVar("Row")

_SCOPE = text("select set_config('berth.organization', :scope, true)")
_OUTBOX = (
    "insert into outbox (event_id, subject, payload, headers) "
    "select * from unnest(%s::text[], %s::text[], %s::bytea[], %s::jsonb[])"
)


class Tx:
    """One transaction. There is no commit here: leaving the block commits, an exception rolls back."""

    def __init__(self, session: AsyncSession, telemetry: Telemetry) -> None:
        self.session = session
        self.events: list[Event] = []
        self.driver: AsyncConnection[Any] | None = None
        self._telemetry = telemetry
        self._headers: list[str] = []
        self._after: list[Callable[[], None]] = []

    async def get(self, row: type[Row], key: Any, *, lock: bool = False) -> Row | None:
        return await self.session.get(row, key, with_for_update=lock or None, populate_existing=lock)

    def add(self, row: object) -> None:
        self.session.add(row)

    async def delete(self, row: object) -> None:
        await self.session.delete(row)

    async def flush(self) -> None:
        await self.session.flush()

    async def execute(self, statement: Executable, parameters: Any = None) -> Result[Any]:
        return await self.session.execute(statement, parameters)

    async def scalars(self, statement: TypedReturnsRows[Row]) -> list[Row]:
        return list((await self.session.scalars(statement)).all())

    async def one(self, statement: TypedReturnsRows[Row]) -> Row | None:
        return (await self.session.scalars(statement)).one_or_none()

    async def connection(self) -> AsyncConnection[Any]:
        """The driver's own connection, inside this transaction: for COPY, unnest and the like."""
        raw = await (await self.session.connection()).get_raw_connection()
        driver: AsyncConnection[Any] = raw.driver_connection  # type: ignore[assignment]
        self.driver = driver
        return driver

    @property
    def trace(self) -> str | None:
        """The trace this transaction belongs to, for work that goes on after it."""
        carrier = self._telemetry.carrier()
        return None if carrier == NO_TRACE else carrier

    def publish(self, event: Event) -> None:
        self.events.append(event)
        self._headers.append(self._telemetry.carrier())

    def after_commit(self, call: Callable[[], None]) -> None:
        self._after.append(call)

    async def _write_outbox(self) -> None:
        if not self.events:
            return
        await self.session.flush()
        connection = await self.connection()
        await connection.execute(
            _OUTBOX,
            (
                [e.id for e in self.events],
                [e.subject() for e in self.events],
                [e.model_dump_json().encode() for e in self.events],
                self._headers,
            ),
        )


class Store:
    def __init__(self, url: str, schema: str, password: str | None, connections: int, telemetry: Telemetry):
        self.url = service_url(url, schema, password)
        self._telemetry = telemetry
        self._engine = create_async_engine(
            self.url,
            # What a burst has opened is closed when it is over: each costs Postgres 2 MB.
            pool_size=KEPT,
            max_overflow=connections - KEPT,
            pool_use_lifo=True,
            pool_timeout=10,
            pool_recycle=3600,
            connect_args={"connect_timeout": 5, "application_name": f"berth-{schema}"},
        )
        self._sessions = async_sessionmaker(self._engine, expire_on_commit=False, autoflush=True)
        conninfo = make_conninfo(
            self.url.set(drivername="postgresql").render_as_string(hide_password=False),
            application_name=f"berth-{schema}-reads",
            connect_timeout=5,
        )
        # Reads that need no transaction go past SQLAlchemy: it costs more than Postgres does.
        self._reads: AsyncConnectionPool[AsyncConnection[tuple[Any, ...]]] = AsyncConnectionPool(
            conninfo,
            min_size=0,
            max_size=connections,
            open=False,
            timeout=10,
            max_idle=300,
            kwargs={"autocommit": True},
        )
        self._on_commit: list[Callable[[], None]] = []

    def on_publish(self, call: Callable[[], None]) -> None:
        """Called after every commit that left events in the outbox."""
        self._on_commit.append(call)

    async def open(self) -> None:
        await self._reads.open(wait=False)

    async def close(self) -> None:
        await self._reads.close()
        await self._engine.dispose()

    async def ping(self) -> None:
        async with self._begin(PLATFORM):
            pass

    @asynccontextmanager
    async def transaction(self, scope: str) -> AsyncIterator[Tx]:
        async with self._begin(scope) as session:
            tx = Tx(session, self._telemetry)
            try:
                yield tx
                await tx._write_outbox()
                await session.commit()
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise Unavailable("the database did not answer; try again") from error
                raise
            except OperationalError as error:
                # From the driver's own connection, which SQLAlchemy does not watch.
                if tx.driver is not None and tx.driver.broken:
                    await session.invalidate()
                    raise Unavailable("the database did not answer; try again") from error
                raise
        if tx.events:
            for call in self._on_commit:
                call()
        for call in tx._after:
            call()

    @asynccontextmanager
    async def _begin(self, scope: str) -> AsyncIterator[AsyncSession]:
        session = self._sessions()
        try:
            try:
                await session.execute(_SCOPE, {"scope": scope})
            except DBAPIError as error:
                # A pooled connection died with the server it was made to; the second try makes a new one.
                if not error.connection_invalidated:
                    raise
                await session.rollback()
                await session.execute(_SCOPE, {"scope": scope})
        except (DBAPIError, PoolExhausted, OSError) as error:
            await session.close()
            raise Unavailable("the database does not answer; try again") from error
        try:
            yield session
        finally:
            await session.close()

    @asynccontextmanager
    async def direct(self) -> AsyncIterator[AsyncConnection[Any]]:
        """A transaction on the chassis's own tables, which are no organization's: past SQLAlchemy, for what
        every event goes through."""
        try:
            connection = await self._reads.getconn()
            try:
                async with connection.transaction():
                    yield connection
            finally:
                await self._reads.putconn(connection)
        except OperationalError as error:
            raise Unavailable("the database does not answer; try again") from error

    async def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """One statement in its own transaction. It sets the organization's scope itself: see `scoped`."""
        try:
            return await self._read(sql, parameters)
        except OperationalError as error:
            if isinstance(error, PoolTimeout):
                raise Unavailable("the database does not answer; try again") from error
        # A pooled connection died with its server: once more, on a new one.
        try:
            return await self._read(sql, parameters)
        except OperationalError as error:
            raise Unavailable("the database does not answer; try again") from error

    async def look(self, select: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What `select` finds among every organization's rows, in one round trip: for loops. Mostly they find
        nothing, and need no transaction to learn it."""
        everywhere = f"select * from ({select}) everywhere where scope.organization is not null"
        return await self.read(scoped(everywhere), (PLATFORM, *parameters))

    async def _read(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        # The pool's own context would commit as well, which takes a tenth of the whole and does nothing here.
        connection = await self._reads.getconn()
        try:
            cursor = await connection.execute(sql, parameters, prepare=True)
            return await cursor.fetchall()
        finally:
            await self._reads.putconn(connection)


def scoped(select: str) -> str:
    """`select` as one round trip inside an organization's scope; its first parameter is the organization.

    `select` reads the organization from `scope.organization`. That reference is what makes Postgres
    set the scope before it touches a table under row-level security; `offset 0` keeps it from pulling the
    two apart again.
    """
    return (  # `select` is written in this repository, never by a user
        "select found.* from (select set_config('berth.organization', %s, true) as organization) scope "
        f"cross join lateral ({select} offset 0) found"
    )


def service_url(url: str, service: str, password: str | None) -> URL:
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    if parsed.username is None:
        parsed = parsed.set(username=f"berth_{service}")
    if parsed.password is None and password is not None:
        parsed = parsed.set(password=password)
    return parsed
