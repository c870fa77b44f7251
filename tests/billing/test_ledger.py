"""I4 at the ledger: money is conserved, booked once, never changed, and never in half."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from billing import ledger
from contracts.errors import InvalidInput
from contracts.events import CreditGranted, WalletChanged
from contracts.ids import new_id
from contracts.money import Money
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime.store import PLATFORM
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from tests.billing.samples import RATE, Biller, at, granted, started


async def credit(biller: Biller, event: CreditGranted) -> list[WalletChanged]:
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        await ledger.credit(event, tx)
    return [e for e in tx.events if isinstance(e, WalletChanged)]


async def test_a_credit_is_booked_once(biller: Biller) -> None:
    org = new_id("org")
    event = granted(org, 25_000_000)
    [changed] = await credit(biller, event)
    assert (changed.sequence, changed.balance) == (1, Money(micros=25_000_000, currency="USD"))
    assert changed.credit == event.credit
    # The same credit in another message is the same credit: who asks again has not heard of it.
    [again] = await credit(biller, event.model_copy(update={"id": "evt-again"}))
    assert again == changed.model_copy(update={"id": again.id, "at": again.at})
    [changed] = await credit(biller, granted(org, -1_000_000))
    assert (changed.sequence, changed.balance.micros) == (2, 24_000_000)
    assert await biller.rows("select account, sum(micros)::bigint from entry group by 1 order by 1") == [
        ("credits", -24_000_000),
        ("wallet", 24_000_000),
    ]
    await biller.assert_books_balance()


async def test_a_credit_of_nothing_books_nothing(biller: Biller) -> None:
    assert await credit(biller, granted(new_id("org"), 0)) == []
    assert await biller.one("select count(*) from posting") == 0


async def test_a_wallet_keeps_its_currency(biller: Biller) -> None:
    org = new_id("org")
    await credit(biller, granted(org, 5))
    with pytest.raises(InvalidInput, match="is kept in USD, not in EUR"):
        await credit(biller, granted(org, 5, amount=Money(micros=5, currency="EUR")))
    assert await biller.balance(org) == 5


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(-(10**9), 10**9)), min_size=1, max_size=25
    )
)
async def test_any_history_balances_and_replays_to_the_same(
    biller: Biller, moves: list[tuple[int, int, int]]
) -> None:
    """Wallet, key of the credit, amount; a key that comes again is the same credit, whatever it says."""
    organizations = [new_id("org") for _ in range(4)]
    keys = {(w, k): new_id("crd") for w in range(4) for k in range(10)}
    history = [granted(organizations[w], m, credit=keys[w, k]) for w, k, m in moves]
    expected: dict[str, dict[str, int]] = {org: {} for org in organizations}
    for event in history:
        if event.amount.micros:
            expected[event.organization].setdefault(event.credit, event.amount.micros)
    for _ in range(2):
        for event in history:
            await credit(biller, event)
        for org in organizations:
            assert await biller.balance(org) == sum(expected[org].values())
    await biller.assert_books_balance()


async def test_credits_at_once_are_all_booked(biller: Biller) -> None:
    org = new_id("org")
    events = [granted(org, 1000 + n) for n in range(12)]
    await asyncio.gather(*(credit(biller, event) for event in [*events, *events]))
    assert await biller.balance(org) == sum(event.amount.micros for event in events)
    sequences = await biller.rows("select sequence from posting order by 1")
    assert [row[0] for row in sequences] == list(range(1, 13))
    await biller.assert_books_balance()


# --- what the database itself refuses -------------------------------------------------------------------


async def test_the_ledger_is_append_only(biller: Biller) -> None:
    await credit(biller, granted(new_id("org"), 5))
    for table in ("entry", "posting", "charge"):
        for statement in (
            f"update {table} set organization = 'org_x'",
            f"delete from {table}",
            f"truncate {table}",
        ):
            with pytest.raises(
                DBAPIError, match=f"{table} is append-only|cannot truncate a table referenced"
            ):
                await execute(biller, statement)
    await biller.assert_books_balance()


async def execute(biller: Biller, *statements: str) -> None:
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        for statement in statements:
            await tx.execute(text(statement))


async def test_a_posting_that_does_not_balance_is_refused_at_the_commit(biller: Biller) -> None:
    org = new_id("org")
    await credit(biller, granted(org, 5))
    posting = (
        f"insert into posting (id, organization, sequence, kind, note) values ('p', '{org}', 2, 'credit', '')"
    )
    entry = "insert into entry (posting, account, organization, micros) values ('p', '{}', '{}', {})"
    with pytest.raises(DBAPIError, match="do not sum to zero"):
        await execute(biller, posting, entry.format("wallet", org, 7))
    with pytest.raises(DBAPIError, match="do not sum to zero"):
        await execute(biller, posting, entry.format("wallet", org, 7), entry.format("credits", org, -8))
    assert await biller.one("select count(*) from posting") == 1
    await execute(biller, posting, entry.format("wallet", org, 7), entry.format("credits", org, -7))


async def test_no_two_postings_follow_the_same_balance(biller: Biller) -> None:
    org = new_id("org")
    await credit(biller, granted(org, 5))
    with pytest.raises(DBAPIError, match="posting_sequence"):
        await execute(
            biller,
            "insert into posting (id, organization, sequence, kind, note) "
            f"values ('p', '{org}', 1, 'credit', '')",
        )


async def test_an_organization_sees_its_own_money_only(biller: Biller) -> None:
    mine, other = new_id("org"), new_id("org")
    for org in (mine, other):
        await credit(biller, granted(org, 5))
        await biller.record(started(org, at(-90)))
    await biller.pass_until(at(0))
    for table in ("span", "wallet", "posting", "entry", "charge"):
        async with biller.runtime.store.transaction(mine) as tx:
            seen = await tx.execute(text(f"select distinct organization from {table}"))
            assert [row[0] for row in seen] == [mine], table
        assert await biller.runtime.store.read(f"select 1 from {table}") == [], "said nothing, sees nothing"


# --- a crash between any two statements -----------------------------------------------------------------


class Crash(BaseException):
    """Not an error the code could handle: the process is gone."""


class CrashAt:
    """Lets `survived` statements through, and then nothing any more."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, survived: int) -> None:
        self.left = survived
        for name in ("execute", "executemany"):
            monkeypatch.setattr(psycopg.AsyncCursor, name, self.counted(getattr(psycopg.AsyncCursor, name)))

    def counted(self, real: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def run(*args: Any, **kwargs: Any) -> Any:
            if self.left <= 0:
                raise Crash
            self.left -= 1
            return await real(*args, **kwargs)

        return run


async def crash_until_done(biller: Biller, org: str, work: Callable[[], Awaitable[Any]]) -> int:
    """Crashes before every statement in turn, and counts how often; nothing of it may be left."""
    before = await biller.balance(org)
    crashes = 0
    while True:
        with pytest.MonkeyPatch.context() as patch:
            CrashAt(patch, survived=crashes)
            try:
                await work()
                return crashes
            except Crash:
                crashes += 1
        assert await biller.balance(org) == before
        await biller.assert_books_balance()


async def test_a_crash_between_any_two_statements_leaves_no_half(biller: Biller) -> None:
    org = new_id("org")
    await credit(biller, granted(org, 5_000_000))
    await biller.record(started(org, at(-1800)))
    await biller.pass_until(at(0))
    before = await biller.balance(org)
    late = started(org, at(-1800))
    event = granted(org, 1_000_000)
    assert await crash_until_done(biller, org, lambda: credit(biller, event)) >= 7
    assert await biller.balance(org) == before + 1_000_000
    assert await crash_until_done(biller, org, lambda: biller.record(late)) >= 5
    assert await crash_until_done(biller, org, biller.charging.charge) >= 10
    assert await biller.balance(org) == before + 1_000_000 - RATE.micros_per_hour // 2
    assert await biller.rows("select from due") == []
    await biller.assert_books_balance()
