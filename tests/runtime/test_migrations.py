"""The tables in the code are the tables in the database, and every tenant's table is fenced."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from runtime.migrations import migrate
from runtime.permissions import SERVICES
from runtime.run import entry_points
from runtime.secrets import derive
from runtime.tables import ChassisBase
from sqlalchemy import Connection, MetaData, NullPool, create_engine, make_url, text

from tests.harness import SECRET, TEMPLATE, Servers

CHASSIS = set(ChassisBase.metadata.tables)
VERSIONS = {"version", "chassis_version"}


def tables_of(service: str) -> MetaData:
    package = entry_points()[service].value.partition(".")[0]
    found: MetaData = import_module(f"{package}.tables").Base.metadata
    return found


@contextmanager
def connect(running: Servers, service: str) -> Iterator[Connection]:
    url = make_url(running.postgres.url(database=TEMPLATE)).set(drivername="postgresql+psycopg")
    with create_engine(url, poolclass=NullPool).connect() as connection:
        connection.execute(text(f'set search_path = "{service}"'))
        yield connection


@pytest.mark.parametrize("service", SERVICES)
def test_the_migrations_make_the_tables_of_the_code(running: Servers, service: str) -> None:
    with connect(running, service) as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "include_object": lambda item, name, kind, *_: (
                    not (kind == "table" and (name in VERSIONS or name in CHASSIS))
                ),
            },
        )
        connection.dialect.default_schema_name = service
        assert compare_metadata(context, tables_of(service)) == []
        chassis = MigrationContext.configure(
            connection,
            opts={"include_object": lambda item, name, kind, *_: kind != "table" or name in CHASSIS},
        )
        assert compare_metadata(chassis, ChassisBase.metadata) == []


@pytest.mark.parametrize("service", SERVICES)
def test_every_table_of_organizations_has_row_level_security(running: Servers, service: str) -> None:
    with connect(running, service) as connection:
        rows = connection.execute(
            text(
                "select c.relname, c.relrowsecurity and c.relforcerowsecurity from pg_class c "
                "join pg_namespace n on n.oid = c.relnamespace "
                "join pg_attribute a on a.attrelid = c.oid and a.attname = 'organization' "
                "where n.nspname = :schema and c.relkind in ('r', 'p')"
            ),
            {"schema": service},
        ).all()
    assert rows
    assert [name for name, fenced in rows if not fenced] == []


def test_migrating_again_changes_nothing(running: Servers) -> None:
    services = [
        (name, entry_points()[name].value.partition(".")[0], derive(SECRET, f"database/{name}"))
        for name in SERVICES
    ]
    migrate(running.postgres.url(database=TEMPLATE), services)
