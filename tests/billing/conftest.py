"""Billing's parts on a database that is made once and emptied for each test: making one takes a second."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from billing.tables import Base
from psycopg import sql
from pydantic import SecretStr
from runtime.run import make_runtime
from runtime.runtime import Runtime
from runtime.settings import RuntimeSettings
from runtime.tables import ChassisBase
from runtime.telemetry import Telemetry

from tests.billing.samples import Biller, SetClock
from tests.harness import SECRET, Servers

DATABASE = "billing_books"
TABLES = [*Base.metadata.tables, *ChassisBase.metadata.tables]


@pytest.fixture(scope="session")
async def books(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    running.create_database(DATABASE)
    settings = RuntimeSettings(
        state=tmp_path_factory.mktemp("books"),
        secret=SecretStr(SECRET),
        database_url=f"postgresql://127.0.0.1:{running.postgres.port}/{DATABASE}",
        nats_url=running.nats.url,
    )
    telemetry = Telemetry()
    runtime = make_runtime("billing", settings, SetClock(), telemetry)
    await runtime.store.open()
    try:
        yield runtime
    finally:
        await runtime.store.close()
        telemetry.close()


@pytest.fixture
def biller(running: Servers, books: Runtime) -> Biller:
    with psycopg.connect(running.postgres.url(database=DATABASE)) as connection:
        # The ledger refuses to be emptied, but for the one who owns the server.
        connection.execute("set session_replication_role = replica")
        names = sql.SQL(", ").join(sql.Identifier("billing", name) for name in TABLES)
        connection.execute(sql.SQL("truncate {}").format(names))
    return Biller(books)
