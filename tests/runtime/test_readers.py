"""Reads survive their server: no caller meets a connection that is dead or busy with another's question, and
none stays idle for ever."""

import asyncio

import psycopg
import pytest
from contracts.errors import Unavailable
from runtime.runtime import Runtime

from tests.harness import Harness, Servers, eventually, free_port


@pytest.fixture
async def looking(harness: Harness) -> Runtime:
    return await harness.store("billing")


def ours(running: Servers, ask: str) -> list[int]:
    """`ask` about each of the service's connections for reads, from outside."""
    with psycopg.connect(running.postgres.url(database="test"), autocommit=True) as connection:
        rows = connection.execute(
            f"select {ask} from pg_stat_activity where application_name = 'berth-billing-reads'"
        )
        return [int(row[0]) for row in rows.fetchall()]


async def several(looking: Runtime) -> list[int]:
    rows = await asyncio.gather(
        *(looking.store.read("select pg_backend_pid(), pg_sleep(0.05)") for _ in range(4))
    )
    return [row[0][0] for row in rows]


async def test_a_dead_connection_is_noticed_before_the_caller_does(
    running: Servers, looking: Runtime
) -> None:
    before = set(await several(looking))
    assert len(before) == 4
    ours(running, "pg_terminate_backend(pid)::int")
    assert set(await several(looking)).isdisjoint(before)
    assert await looking.store.read("select 1") == [(1,)]


async def test_there_are_never_more_than_allowed_and_the_others_wait(
    running: Servers, harness: Harness
) -> None:
    narrow = harness.runtime("billing", database_connections=2)
    try:
        rows = await asyncio.gather(*(narrow.store.read("select %s::int", (n,)) for n in range(50)))
        assert [row[0][0] for row in rows] == list(range(50))
        assert len(ours(running, "pid")) == 2
    finally:
        await narrow.store.close()


async def test_an_answer_nobody_waits_for_any_more_reaches_nobody(looking: Runtime) -> None:
    await looking.store.read("select 1")
    reading = asyncio.create_task(looking.store.read("select 'late', pg_sleep(0.2)"))
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await looking.store.read("select 'mine'") == [("mine",)]


async def test_a_mistake_in_a_statement_costs_no_connection(running: Servers, looking: Runtime) -> None:
    await looking.store.read("select 1")
    for _ in range(3):
        with pytest.raises(psycopg.errors.UndefinedTable):
            await looking.store.read("select * from nowhere")
    assert len(ours(running, "pid")) == 1


async def test_the_idle_are_let_go(
    running: Servers, looking: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    await several(looking)
    await looking.store.let_go()
    assert len(ours(running, "pid")) == 4
    monkeypatch.setattr("runtime.readers.IDLE_SECONDS", -1.0)
    await looking.store.let_go()

    async def gone() -> bool:
        return not ours(running, "pid")

    await eventually(gone, what="the end of the idle connections")


async def test_without_a_server_the_caller_is_refused_at_once(harness: Harness) -> None:
    away = harness.runtime("billing", database_url=f"postgresql://127.0.0.1:{free_port()}/test")
    async with asyncio.timeout(2):
        with pytest.raises(Unavailable):
            await away.store.read("select 1")
    await away.store.close()
