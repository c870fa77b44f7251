"""The start: what the gateway brings with it, and what it refuses to begin with (I8)."""

import asyncio
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from gateway.app import create
from gateway.identity_tables import Base
from gateway.settings import GatewaySettings
from pydantic import ValidationError
from runtime.host import Host
from runtime.tables import ChassisBase
from sqlalchemy import create_engine

from tests.customer import PASSWORD, Refused
from tests.gateway.world import ADMIN, opened
from tests.harness import Harness, Servers


@pytest.mark.parametrize(
    "password",
    [
        "",
        "short",
        "elevenchars",
        "changeme",
        "changeme1234",
        "password1234!",
        "Administrator",
        "aaaaaaaaaaaaaaaa",
        "                ",
        "passwordpassword",
        "root@example.org",
    ],
)
def test_a_weak_administrator_stops_the_start(password: str) -> None:
    with pytest.raises(ValidationError, match="GATEWAY_ADMIN_PASSWORD"):
        GatewaySettings(admin_email=ADMIN[0], admin_password=password)


def test_a_password_needs_its_account() -> None:
    with pytest.raises(ValidationError, match="GATEWAY_ADMIN_EMAIL"):
        GatewaySettings(admin_email="", admin_password=ADMIN[1])


@pytest.mark.parametrize("secret", ["", "changeme", "x" * 40])
def test_a_weak_key_stops_the_start(secret: str) -> None:
    with pytest.raises(ValidationError, match="GATEWAY_TOKEN_SECRET"):
        GatewaySettings(token_secret=secret)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_ADMIN_EMAIL", "boss@example.org")
    monkeypatch.setenv("GATEWAY_ADMIN_PASSWORD", "not-so-easy-to-guess")
    monkeypatch.setenv("GATEWAY_REGISTRATION", "false")
    settings = GatewaySettings()
    assert (settings.admin_email, settings.registration) == ("boss@example.org", False)
    assert "guess" not in repr(settings)


async def test_an_administrator_is_made_once_and_then_left_alone(harness: Harness) -> None:
    async with opened(harness) as here:
        admin = await here.administrator()
        me = await admin.call("GET", "/api/auth/me")
        assert me["administrator"]
    await harness.stop("gateway")
    # Another password, another e-mail: there is one already, so nothing changes.
    async with opened(harness, admin_password="another-good-one-42") as here:
        assert (await (await here.administrator()).call("GET", "/api/auth/me"))["id"] == me["id"]
        visitor = await here.visitor()
        with pytest.raises(Refused):
            await visitor.log_in(ADMIN[0], "another-good-one-42")
    await harness.stop("gateway")
    async with opened(harness, admin_email="else@example.org") as here:
        visitor = await here.visitor()
        with pytest.raises(Refused):
            await visitor.log_in("else@example.org", ADMIN[1])


async def test_who_registers_as_the_administrator_first_is_none(harness: Harness) -> None:
    async with opened(harness, admin_email="", admin_password="") as here:
        squatter = await here.visitor()
        await squatter.register(ADMIN[0])
        assert not (await squatter.call("GET", "/api/auth/me"))["administrator"]
    await harness.stop("gateway")
    async with opened(harness) as here:
        admin = await here.administrator()
        assert (await admin.call("GET", "/api/auth/me"))["administrator"]
        visitor = await here.visitor()
        visitor.token = squatter.token
        with pytest.raises(Refused, match="revoked"):
            await visitor.call("GET", "/api/auth/me")
        with pytest.raises(Refused):
            await visitor.log_in(ADMIN[0], PASSWORD)


async def test_what_an_administrator_took_away_stays_away(harness: Harness) -> None:
    async with opened(harness) as here:
        admin = await here.administrator()
        await admin.call("PATCH", "/api/admin/paas/plans/nano", json={"active": False, "title": "Old"})
    await harness.stop("gateway")
    async with opened(harness) as here:
        plans = (await (await here.administrator()).call("GET", "/api/admin/paas/plans"))["plans"]
        assert [(p["name"], p["active"]) for p in plans] == [
            ("nano", False),
            ("small", True),
            ("medium", True),
        ]


async def test_registration_can_be_closed(harness: Harness) -> None:
    async with opened(harness, registration=False) as here:
        visitor = await here.visitor()
        with pytest.raises(Refused, match="ask the operator") as refused:
            await visitor.register("new@example.org")
        assert refused.value.status == 403
        await here.administrator()


async def test_git_on_private_addresses_can_be_allowed(harness: Harness) -> None:
    async with opened(harness, allow_private_git=True) as here:
        customer = await here.customer()
        for number, host in enumerate(("10.0.0.1", "inside.example.org", "no-such-name")):
            await customer.create(f"private-{number}", git={"url": f"https://{host}/a/b.git"})
        for url in ("file:///etc/passwd", "ext::sh", "http://10.0.0.1/a/b"):
            with pytest.raises(Refused) as refused:
                await customer.create("private-x", git={"url": url})
            assert refused.value.status == 422


async def test_two_gateways_begin_at_once(harness: Harness) -> None:
    settings = GatewaySettings(admin_email=ADMIN[0], admin_password=ADMIN[1])

    async def begin(alias: str) -> Host:
        return await harness.start("gateway", lambda runtime: create(runtime, settings), alias=alias)

    hosts = await asyncio.gather(begin("one"), begin("two"), begin("three"))
    rows = await hosts[0].runtime.store.read(
        'select (select count(*) from "user" where administrator), (select count(*) from plan)'
    )
    assert rows == [(1, 3)]


def test_the_tables_are_what_the_migrations_make(running: Servers) -> None:
    running.create_database("schema")
    engine = create_engine(
        f"postgresql+psycopg://{running.postgres.url(database='schema').partition('://')[2]}"
    )

    def ours(thing: Any, name: str | None, kind: str, *_: Any) -> bool:
        chassis = {*ChassisBase.metadata.tables, "version", "chassis_version"}
        return not (kind == "table" and name in chassis)

    with engine.connect() as connection:
        connection.exec_driver_sql("set search_path = gateway")
        context = MigrationContext.configure(
            connection,
            opts={"compare_type": True, "compare_server_default": True, "include_object": ours},
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()
    with psycopg.connect(running.postgres.url(database="schema")) as raw:
        secured = raw.execute(
            "select relname from pg_class where relnamespace = 'gateway'::regnamespace "
            "and relrowsecurity and relforcerowsecurity and relkind = 'r'"
        ).fetchall()
    assert {name for (name,) in secured} == {
        table.name for table in Base.metadata.sorted_tables if "organization" in table.columns
    }
    running.drop_database("schema")
