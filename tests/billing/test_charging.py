"""What instances used is charged to the second, once, whatever order the facts and ticks come in."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pytest
from billing.charging import close, settle
from billing.rating import Span, rate
from contracts.errors import InvalidInput, Stale
from contracts.events import BillingTick, InstanceStarted, InstanceStopped, WalletChanged
from contracts.ids import new_id
from contracts.money import Rate, charge_until
from contracts.workload import Slot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime.store import PLATFORM

from tests.billing.samples import RATE, Biller, at, granted, started, stopped
from tests.billing.test_ledger import credit


async def test_an_hour_of_use_costs_its_rate(biller: Biller) -> None:
    org = new_id("org")
    await credit(biller, granted(org, 1_000_000))
    first = started(org, at(0))
    await biller.record(first)
    await biller.pass_until(at(1800))
    await biller.record(stopped(first, at(3600)))
    await biller.pass_until(at(7200))
    assert await biller.charged(org) == {first.instance: (3600, RATE.micros_per_hour)}
    assert await biller.balance(org) == 1_000_000 - RATE.micros_per_hour
    await biller.assert_books_balance()


async def test_a_tick_that_comes_again_charges_nothing(biller: Biller) -> None:
    org = new_id("org")
    await biller.record(started(org, at(-30)))
    await biller.pass_until(at(0))
    charged, postings = await biller.charged(org), await biller.rows("select * from posting")
    for start, end in await biller.rows("select starts_at, ends_at from period"):
        for _ in range(3):
            await biller.tick(start, end)
            await biller.charge()
    assert await biller.charged(org) == charged
    assert await biller.rows("select * from posting") == postings


async def test_a_tick_of_no_period_says_nothing(biller: Biller) -> None:
    org = new_id("org")
    await biller.record(started(org, at(-600)))
    await biller.pass_until(at(0))
    charged = await biller.charged(org)
    with pytest.raises(Stale):
        await biller.tick(at(-75), at(-15))
    assert await biller.charged(org) == charged


async def test_a_late_stop_is_given_back_and_a_late_start_charged(biller: Biller) -> None:
    org = new_id("org")
    seen = started(org, at(0))
    await biller.record(seen)
    await biller.pass_until(at(300))
    unseen = started(org, at(60))
    await biller.record(stopped(seen, at(90)), stopped(unseen, at(120)))
    await biller.charge()
    assert await biller.charged(org) == {
        seen.instance: (90, charge_until(RATE, 90)),
        unseen.instance: (60, charge_until(RATE, 60)),
    }
    rounds = await biller.rows("select round, count(*) from charge group by 1 order by 1")
    assert [row[0] for row in rounds] == [0, 1]
    await biller.record(started(org, at(60), instance=unseen.instance), stopped(seen, at(95)))
    assert await biller.rows("select from due") == [], "known already, and a later stop than the first"
    await biller.assert_books_balance()


async def test_what_ran_before_billing_did_is_charged(biller: Biller) -> None:
    org = new_id("org")
    early = started(org, at(-20 * 86_400))
    await biller.record(stopped(early, at(-20 * 86_400 + 3600)))
    await biller.pass_until(at(0))
    assert await biller.charged(org) == {early.instance: (3600, RATE.micros_per_hour)}


async def test_free_use_is_measured_and_books_nothing(biller: Biller) -> None:
    org = new_id("org")
    await biller.record(started(org, at(-30), rate=Rate(micros_per_hour=0, currency="USD")))
    await biller.pass_until(at(0))
    assert [seconds for seconds, _ in (await biller.charged(org)).values()] == [30]
    assert await biller.rows("select from wallet") == []


async def test_seconds_that_move_between_instances_book_nothing(biller: Biller) -> None:
    org, app = new_id("org"), new_id("app")
    await biller.record(started(org, at(-60), workload=app))
    await biller.pass_until(at(0))
    balance = await biller.balance(org)
    await biller.record(started(org, at(-60), workload=app))
    await biller.charge()
    assert await biller.balance(org) == balance
    assert len(await biller.rows("select from posting")) == 1
    assert len(await biller.charged(org)) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rate": Rate(micros_per_hour=1, currency="EUR")}, "BERTH_CURRENCY"),
        ({"started_at": datetime.fromisoformat("1970-01-01T00:05Z")}, "set the clock of node local"),
    ],
)
async def test_what_cannot_be_true_is_refused_with_what_to_do(
    biller: Biller, fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        await biller.record(started(new_id("org"), at(0), **fields))


async def test_a_node_ends_no_other_nodes_meter(biller: Biller) -> None:
    org = new_id("org")
    first = started(org, at(0))
    await biller.record(first, stopped(first, at(10), node="n2"))
    await biller.pass_until(at(60))
    assert await biller.charged(org) == {first.instance: (60, charge_until(RATE, 60))}


async def test_one_organization_that_cannot_be_charged_holds_up_nobody(biller: Biller) -> None:
    bad, good = "org_00000000000000000000000000", new_id("org")
    await biller.record(started(bad, at(-60)), started(good, at(-60)))
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        connection = await tx.connection()
        await connection.execute("update span set currency = 'EUR' where organization = %s", (bad,))
    await biller.pass_until(at(0))
    assert len(await biller.charged(good)) == 1
    assert await biller.charged(bad) == {}
    for _ in range(4):
        await make_due_again(biller)
        await biller.charge()
    assert await biller.rows("select organization, failures from due") == [(bad, 5)]
    [alert] = await biller.rows(
        "select convert_from(payload, 'utf8')::json -> 'details' from outbox where subject = 'alert.raised'"
    )
    assert alert[0]["organization"] == bad
    assert "BERTH_CURRENCY" in alert[0]["error"]
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        connection = await tx.connection()
        await connection.execute("update span set currency = 'USD'")
    await make_due_again(biller)
    await biller.charge()
    assert len(await biller.charged(bad)) == 1


async def make_due_again(biller: Biller) -> None:
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        await (await tx.connection()).execute("update due set retry_at = now()")


# --- any order of facts and ticks -------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    slot: int
    began: float
    ended: float | None
    micros: int


lives = st.lists(
    st.builds(
        Life,
        slot=st.integers(0, 1),
        began=st.one_of(st.integers(0, 200), st.floats(0, 200)),
        ended=st.one_of(st.none(), st.integers(0, 260), st.floats(0, 260)),
        micros=st.integers(0, 10**7),
    ),
    min_size=1,
    max_size=5,
)


def events_of(
    org: str, app: str, base: datetime, life: Life
) -> tuple[InstanceStarted, InstanceStopped | None]:
    begin = started(
        org,
        at(life.began) + (base - at(0)),
        workload=app,
        slot=Slot(process="web", index=life.slot),
        rate=Rate(micros_per_hour=life.micros, currency="USD"),
    )
    if life.ended is None:
        return begin, None
    return begin, stopped(begin, at(life.ended) + (base - at(0)))


def final(facts: Sequence[tuple[InstanceStarted, InstanceStopped | None]]) -> list[Span]:
    return [
        Span(
            begin.instance,
            begin.workload,
            begin.slot.process,
            begin.slot.index,
            begin.rate,
            begin.started_at,
            end.stopped_at if end else None,
        )
        for begin, end in facts
    ]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lives, st.data())
async def test_the_charges_are_the_rating_of_the_final_spans(
    biller: Biller, found: list[Life], data: st.DataObject
) -> None:
    """Every fact twice, in any order, while periods end and are charged in between."""
    org, app = new_id("org"), new_id("app")
    await biller.pass_until(biller.clock.moment + (at(60) - at(0)))
    base = biller.clock.moment
    facts = [events_of(org, app, base, life) for life in found]
    messages = [m for pair in facts for m in (*pair, *pair) if m is not None]
    steps = data.draw(st.permutations([*messages, *[None] * 4]))
    for step in steps:
        if step is None:
            await biller.pass_until(biller.clock.moment + (at(70) - at(0)))
        else:
            await biller.record(step)
    await biller.pass_until(base + (at(420) - at(0)))
    end = (await biller.rows("select max(ends_at) from period"))[0][0]
    owed = {line.instance: (line.seconds, line.micros) for line in rate(final(facts), base, end)}
    assert await biller.charged(org) == owed
    assert -await biller.balance(org) == sum(micros for _, micros in owed.values())
    await biller.assert_books_balance()
    # Not to be charged by the examples that follow.
    await biller.record(*(stopped(begin, end) for begin, stop in facts if stop is None))


async def test_replicas_share_the_work_and_lose_nothing(biller: Biller) -> None:
    """Facts arrive, ticks come again and chargers run, all at once; afterwards everything adds up."""
    organizations = [new_id("org") for _ in range(6)]
    await biller.pass_until(at(0))
    facts: list[tuple[InstanceStarted, InstanceStopped | None]] = []
    for number, org in enumerate(organizations):
        begin = started(org, at(number))
        facts.append((begin, stopped(begin, at(100 + 30 * number))))
        facts.append((started(org, at(50 + number), workload=begin.workload), None))
    await biller.record(*(begin for begin, _ in facts[::2]))
    biller.clock.moment = at(240)
    while await biller.charging.end_periods():
        pass
    periods = await biller.rows("select starts_at, ends_at from period where starts_at >= %s", at(0))

    async def arrive(messages: list[InstanceStarted | InstanceStopped]) -> None:
        for message in messages:
            await biller.record(message)

    async def tick() -> None:
        for start, end in periods:
            await biller.tick(start, end)
            await biller.charge()

    messages = [m for pair in facts for m in pair if m is not None]
    await asyncio.gather(arrive(messages), arrive(messages[::-1]), tick(), tick())
    await biller.charge()
    owed = {line.instance: (line.seconds, line.micros) for line in rate(final(facts), at(0), at(240))}
    charged: dict[str, tuple[int, int]] = {}
    for org in organizations:
        charged |= await biller.charged(org)
    assert charged == owed
    await biller.assert_books_balance()


async def test_a_tick_waits_for_facts_that_are_being_recorded(biller: Biller) -> None:
    """A fact whose recorder could not know of the period's end is in the tick that follows it."""
    org = new_id("org")
    await biller.pass_until(at(0))
    late = started(org, at(10))
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def record_slowly() -> None:
        async with biller.runtime.store.transaction(PLATFORM) as tx:
            await biller.metering.started([late], tx)
            begun.set()
            await go_on.wait()

    recording = asyncio.create_task(record_slowly())
    await begun.wait()
    biller.clock.moment = at(60)
    await biller.charging.end_periods()
    ticking = asyncio.create_task(biller.tick(at(0), at(60)))
    await asyncio.sleep(0.1)
    assert not ticking.done()
    go_on.set()
    await asyncio.gather(recording, ticking)
    await biller.charge()
    assert await biller.charged(org) == {late.instance: (50, charge_until(RATE, 50))}


async def test_what_is_being_made_due_is_not_taken(biller: Biller) -> None:
    """Else it would be charged without the fact that makes it due, and forgotten."""
    org = new_id("org")
    first = started(org, at(0))
    await biller.pass_until(at(0))
    await biller.record(first)
    biller.clock.moment = at(60)
    await biller.charging.end_periods()
    await biller.tick(at(0), at(60))
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        await biller.metering.stopped([stopped(first, at(20))], tx)
        assert await biller.charging.charge() is False
    await biller.charge()
    assert await biller.charged(org) == {first.instance: (20, charge_until(RATE, 20))}


async def test_a_fact_that_meets_its_charge_is_charged_after_it(biller: Biller) -> None:
    org = new_id("org")
    first = started(org, at(0))
    await biller.pass_until(at(0))
    await biller.record(first)
    biller.clock.moment = at(60)
    await biller.charging.end_periods()
    await biller.tick(at(0), at(60))
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        ended = await biller.charging._take(tx)
        assert ended is not None
        await settle(tx, ended, "USD")
        recording = asyncio.create_task(biller.record(stopped(first, at(20))))
        await asyncio.sleep(0.1)
        assert not recording.done()
    await recording
    await biller.charge()
    assert await biller.charged(org) == {first.instance: (20, charge_until(RATE, 20))}
    assert await biller.balance(org) == -charge_until(RATE, 20)


async def test_periods_missed_are_ended_in_order_and_once(biller: Biller) -> None:
    await biller.pass_until(at(0))
    biller.clock.moment = at(60 * 250)
    done = await asyncio.gather(*(biller.charging.end_periods() for _ in range(3)))
    assert all(done)
    while await biller.charging.end_periods():
        pass
    ticks = await biller.rows("select event_id from outbox where subject = 'billing.tick' order by id")
    assert len(ticks) == len(set(ticks)) == 251
    assert [row[0] for row in ticks[1:]] == sorted(row[0] for row in ticks[1:])
    gaps = await biller.rows(
        "select from (select starts_at, lag(ends_at) over (order by starts_at) as before from period) p "
        "where starts_at <> before"
    )
    assert gaps == []


async def test_a_charge_says_the_new_balance(biller: Biller) -> None:
    org = new_id("org")
    await biller.record(started(org, at(-60)))
    await biller.pass_until(at(0))
    [(payload,)] = await biller.rows("select payload from outbox where subject = 'wallet.changed'")
    changed = WalletChanged.model_validate_json(payload)
    assert (changed.organization, changed.sequence) == (org, 1)
    assert changed.balance.micros == -charge_until(RATE, 60)


async def test_a_tick_nudges_the_charger(biller: Biller) -> None:
    await biller.pass_until(at(0))
    nudged: list[bool] = []
    async with biller.runtime.store.transaction(PLATFORM) as tx:
        [(start, end)] = await biller.rows("select starts_at, ends_at from period")
        await close(lambda: nudged.append(True), BillingTick(period_start=start, period_end=end), tx)
        assert nudged == []
    assert nudged == [True]
