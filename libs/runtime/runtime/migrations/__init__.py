"""Schema changes: one schema, one role and one chain of revisions per service, and the chassis's own chain
in each of them. Whoever starts first migrates; the others wait at an advisory lock."""

import time
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import structlog
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from contracts.errors import Unavailable
from psycopg import sql
from psycopg.errors import LockNotAvailable
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

log = structlog.get_logger("runtime.migrations")

LOCK = 0x62657274  # "bert"
# A change that waits for a lock makes everybody behind it wait too: give up early, come back later.
LOCK_TIMEOUT = "2s"
LOCK_TRIES = 10
CONNECT_TRIES = 30


def tenant(op: Any, table: str) -> None:
    """Row-level security for a table with an `organization` column: an organization sees its own rows,
    the platform all, and a connection that said nothing none."""
    for statement in tenant_statements(table):
        op.execute(statement)


def tenant_statements(table: str) -> tuple[str, ...]:
    return (
        f"alter table {table} enable row level security",
        f"alter table {table} force row level security",
        f"create policy organization on {table} using ("
        "current_setting('berth.organization', true) = '*' "
        "or organization = current_setting('berth.organization', true))",
    )


def migrate(admin_url: str, services: Iterable[tuple[str, str, str]]) -> None:
    """`services`: name, import name of its package, password of its role."""
    url = make_url(admin_url).set(drivername="postgresql+psycopg")
    engine = create_engine(url, connect_args={"connect_timeout": 5})
    try:
        with _connected(engine) as guard:
            guard.execute(text("select pg_advisory_lock(:lock)"), {"lock": LOCK})
            guard.commit()
            for name, package, password in services:
                with engine.connect() as connection:
                    _schema_and_role(connection, name, password)
                    _upgrade(connection, name, "runtime", "chassis_version")
                    if (scripts(package) / "versions").is_dir():
                        _upgrade(connection, name, package, "version")
            guard.execute(text("select pg_advisory_unlock(:lock)"), {"lock": LOCK})
            guard.commit()
    finally:
        engine.dispose()


def _connected(engine: Engine) -> Connection:
    """Waits for a database that is being started beside us."""
    for attempt in range(1, CONNECT_TRIES + 1):
        try:
            return engine.connect()
        except OperationalError as error:
            if attempt == CONNECT_TRIES:
                raise Unavailable(f"the database does not answer: {error.orig}") from error
            if attempt == 1:
                log.warning("the database does not answer yet", error=str(error.orig))
            time.sleep(1)
    raise AssertionError("the last try returns or raises")


def _schema_and_role(connection: Connection, name: str, password: str) -> None:
    role, schema = sql.Identifier(f"berth_{name}"), sql.Identifier(name)
    raw: Any = connection.connection.driver_connection
    exists = raw.execute("select 1 from pg_roles where rolname = %s", (f"berth_{name}",)).fetchone()
    if not exists:
        raw.execute(sql.SQL("create role {} login").format(role))
    raw.execute(sql.SQL("alter role {} password {}").format(role, sql.Literal(password)))
    raw.execute(sql.SQL("alter role {} set search_path = {}").format(role, schema))
    raw.execute(sql.SQL("grant {} to current_user").format(role))
    raw.execute(sql.SQL("create schema if not exists {} authorization {}").format(schema, role))
    raw.execute(sql.SQL("revoke all on schema public from public"))
    raw.commit()


def _upgrade(connection: Connection, name: str, package: str, version_table: str) -> None:
    for attempt in range(1, LOCK_TRIES + 1):
        try:
            _upgrade_once(connection, name, package, version_table)
            return
        except OperationalError as error:
            connection.rollback()
            if not isinstance(error.orig, LockNotAvailable) or attempt == LOCK_TRIES:
                raise
            log.warning("a table is in use, migrating later", service=name, attempt=attempt)
            time.sleep(attempt)


def _upgrade_once(connection: Connection, name: str, package: str, version_table: str) -> None:
    connection.exec_driver_sql(f'set role "berth_{name}"')
    connection.exec_driver_sql(f'set search_path = "{name}"')
    connection.exec_driver_sql(f"set lock_timeout = '{LOCK_TIMEOUT}'")
    connection.commit()
    config = Config()
    config.set_main_option("script_location", str(scripts(package)))
    script = ScriptDirectory.from_config(config)

    def steps(revision: Any, _: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(config, script, fn=steps) as environment:
        environment.configure(
            connection=connection,
            version_table=version_table,
            version_table_schema=name,
            transaction_per_migration=True,
        )
        with environment.begin_transaction():
            environment.run_migrations()
    connection.commit()
    connection.exec_driver_sql("reset role")
    connection.commit()


def scripts(package: str) -> Path:
    return Path(str(resources.files(package))) / "migrations"
