"""What a customer is told about his money, and that the standing audit finds what is wrong with it."""

from typing import Any

import psycopg
import pytest
from billing.audit import Audit
from billing.wallet import Wallets
from contracts.events import AlertRaised
from contracts.ids import new_id
from contracts.money import Money, charge_until
from contracts.queries import StatementOf, WalletOf

from tests.billing.conftest import DATABASE
from tests.billing.samples import RATE, Biller, at, granted, started, stopped
from tests.billing.test_ledger import credit
from tests.harness import Servers


def usd(micros: int) -> Money:
    return Money(micros=micros, currency="USD")


async def wallet(biller: Biller, organization: str) -> tuple[Money, Money]:
    found = await Wallets(biller.runtime, "USD").wallet(WalletOf(organization=organization))
    assert found.organization == organization
    return found.balance, found.accrued


async def test_an_organization_nobody_paid_for_has_nothing(biller: Biller) -> None:
    assert await wallet(biller, new_id("org")) == (usd(0), usd(0))


async def test_what_was_used_since_the_last_charge_is_accrued(biller: Biller) -> None:
    org, stranger = new_id("org"), new_id("org")
    await credit(biller, granted(org, 1_000_000))
    first = started(org, at(0))
    await biller.record(first, started(stranger, at(0)))
    biller.clock.moment = at(10)
    assert await wallet(biller, org) == (usd(1_000_000), usd(charge_until(RATE, 10)))
    await biller.pass_until(at(90))
    charged = charge_until(RATE, 60)
    assert await wallet(biller, org) == (usd(1_000_000 - charged), usd(charge_until(RATE, 90) - charged))
    await biller.record(stopped(first, at(100)))
    biller.clock.moment = at(110)
    assert await wallet(biller, org) == (usd(1_000_000 - charged), usd(charge_until(RATE, 100) - charged))


async def test_what_is_due_and_not_yet_charged_is_accrued_too(biller: Biller) -> None:
    org = new_id("org")
    first = started(org, at(0))
    await biller.record(first)
    await biller.pass_until(at(300))
    total = usd(-charge_until(RATE, 300))
    await biller.record(stopped(first, at(150)))
    balance, accrued = await wallet(biller, org)
    assert balance == total
    assert balance - accrued == usd(-charge_until(RATE, 150))
    await biller.charge()
    assert await wallet(biller, org) == (usd(-charge_until(RATE, 150)), usd(0))


async def test_the_statement_shows_charges_per_app_and_period_and_every_entry(biller: Biller) -> None:
    org, (blog, shop) = new_id("org"), sorted([new_id("app"), new_id("app")])
    event = granted(org, 500)
    await credit(biller, event)
    await biller.pass_until(at(0))
    old = started(org, at(0), workload=shop)
    new = started(org, at(40), workload=shop)
    await biller.record(old, new, stopped(old, at(50)), started(org, at(70), workload=blog))
    await biller.pass_until(at(120))
    await credit(biller, granted(new_id("org"), 77))
    found = await Wallets(biller.runtime, "USD").statement(StatementOf(organization=org))
    assert [(c.workload, c.period_start, c.period_end, c.seconds) for c in found.charges] == [
        (blog, at(60), at(120), 50),
        (shop, at(60), at(120), 60),
        (shop, at(0), at(60), 60),
    ]
    assert [(e.kind, e.note) for e in found.entries] == [
        ("charge", "Usage 2026-03-01 00:01:00 to 2026-03-01 00:02:00 UTC"),
        ("charge", "Usage 2026-03-01 00:00:00 to 2026-03-01 00:01:00 UTC"),
        ("credit", "welcome"),
    ]
    assert found.entries[-1].id == event.credit
    balance, _ = await wallet(biller, org)
    assert sum(e.amount.micros for e in found.entries) == balance.micros
    assert sum(c.amount.micros for c in found.charges) == 500 - balance.micros
    short = await Wallets(biller.runtime, "USD").statement(StatementOf(organization=org, limit=1))
    assert (short.charges, short.entries) == (found.charges[:1], found.entries[:1])


async def test_a_correction_is_one_more_entry_and_the_same_charge(biller: Biller) -> None:
    org = new_id("org")
    first = started(org, at(0))
    await biller.record(first)
    await biller.pass_until(at(60))
    await biller.record(stopped(first, at(20)))
    await biller.charge()
    found = await Wallets(biller.runtime, "USD").statement(StatementOf(organization=org))
    assert [(c.seconds, c.amount) for c in found.charges] == [(20, usd(charge_until(RATE, 20)))]
    assert found.entries[0].note.startswith("Correction of usage")
    assert found.entries[0].amount.micros > 0


# --- the audit ---------------------------------------------------------------------------------------------


async def alerts(biller: Biller) -> list[AlertRaised]:
    rows = await biller.rows("select payload from outbox where subject = 'alert.raised' order by id")
    return [AlertRaised.model_validate_json(payload) for (payload,) in rows]


async def test_sound_books_raise_no_alert(biller: Biller) -> None:
    for _ in range(3):
        org = new_id("org")
        await credit(biller, granted(org, 1_000))
        await biller.record(started(org, at(0)))
    await biller.pass_until(at(60))
    await Audit(biller.runtime).check()
    assert await alerts(biller) == []
    assert await biller.rows("select from wallet where audited_at is null") == []


@pytest.mark.parametrize(
    ("tampering", "part", "words"),
    [
        ("update wallet set balance = balance + 1", "wallet", "holds"),
        ("update wallet set sequence = sequence + 1", "postings", "the wallet counts"),
        ("delete from entry where account = 'revenue'", "entries", "not to 0"),
        ("update charge set micros = micros - 1", "revenue", "charged were"),
    ],
)
async def test_books_that_were_tampered_with_raise_an_alert(
    running: Servers, biller: Biller, tampering: Any, part: str, words: str
) -> None:
    org = new_id("org")
    await credit(biller, granted(org, 1_000))
    await biller.record(started(org, at(0)))
    await biller.pass_until(at(60))
    with psycopg.connect(running.postgres.url(database=DATABASE)) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute("set search_path = billing")
        connection.execute(tampering)
    await Audit(biller.runtime).check()
    [alert] = await alerts(biller)
    assert (alert.severity, alert.details["organization"]) == ("critical", org)
    assert words in alert.details[part]
