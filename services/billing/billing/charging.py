"""Ends periods and charges them: compares what is owed for a period with what was charged, books the rest.

Invariant: once an organization's period is charged, its charges are the rating of its spans; so a tick that
comes again charges nothing, and a fact that comes late is charged (or given back) in a further round.
Replicas share the work row by row. Runs as loops of `app`, and handles `billing.tick`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from contracts.errors import InvalidInput, Unavailable
from contracts.events import AlertRaised, BillingTick
from contracts.money import Money, Rate
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx
from sqlalchemy import func, or_, select, text
from sqlalchemy.dialects.postgresql import insert

from billing import due, ledger
from billing.periods import following, tick_id
from billing.rating import Line, Span, differences, rate
from billing.tables import ChargeRow, DueRow, PeriodRow

# Failures in a row of one organization's period after which somebody should look.
ALARMING = 5
LONGEST_PAUSE = 300

_SPANS = """
select instance, workload, process, index, micros_per_hour, currency, started_at,
    coalesce(stopped_at, unseen_since)
from span
where organization = %(organization)s and started_at < %(end)s
    and (stopped_at is null or stopped_at > %(start)s)
"""

_ANY_DUE = "select exists (select from due where retry_at is null or retry_at <= now())"

_CHARGED = """
select instance, min(workload), sum(seconds)::bigint, sum(micros)::bigint, max(round)
from charge where organization = %s and period = %s group by instance
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """An organization's period that is to be charged."""

    organization: str
    start: datetime
    end: datetime


class Charging:
    def __init__(self, runtime: Runtime, currency: str, period_seconds: int) -> None:
        self._runtime = runtime
        self._currency = currency
        self._period_seconds = period_seconds

    # --- a period ends ---------------------------------------------------------------------------------

    async def end_periods(self) -> bool:
        """Publishes the tick of every period that has ended since the last one, also of those that ended
        while nobody was there; of all replicas the one whose row is first."""
        now = self._runtime.clock.now()
        async with self._runtime.store.transaction(PLATFORM) as tx:
            last = (await tx.execute(select(func.max(PeriodRow.ends_at)))).scalar_one()
            periods = following(last, now, self._period_seconds)
            for start, end in periods:
                row = insert(PeriodRow).values(starts_at=start, ends_at=end).on_conflict_do_nothing()
                if (await tx.execute(row.returning(PeriodRow.starts_at))).first() is not None:
                    tx.publish(BillingTick(id=tick_id(start, end), period_start=start, period_end=end))
        return bool(periods)

    # --- a period is charged ---------------------------------------------------------------------------

    async def charge(self) -> bool:
        """One organization's period, in one transaction; False when nothing is due."""
        if not (await self._runtime.store.look(_ANY_DUE))[0][0]:
            return False
        ended = None
        try:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                ended = await self._take(tx)
                if ended is None:
                    return False
                await settle(tx, ended, self._currency)
        except Unavailable:
            raise
        except Exception as error:
            if ended is None:
                raise
            # The others' periods must not wait for this one.
            await self._put_off(ended, error)
        return True

    async def _take(self, tx: Tx) -> Ended | None:
        """Locked, not yet deleted: who makes it due again waits, and then finds it gone."""
        row = await tx.one(
            select(DueRow)
            .where(or_(DueRow.retry_at.is_(None), DueRow.retry_at <= func.now()))
            .order_by(DueRow.period, DueRow.organization)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if row is None:
            return None
        period = await tx.get(PeriodRow, row.period)
        assert period is not None, "a foreign key says so"
        await tx.delete(row)
        return Ended(row.organization, period.starts_at, period.ends_at)

    async def _put_off(self, ended: Ended, error: Exception) -> None:
        self._runtime.log.error(
            "not charged", organization=ended.organization, period=ended.start, exc_info=error
        )
        async with self._runtime.store.transaction(PLATFORM) as tx:
            row = await tx.get(DueRow, (ended.start, ended.organization), lock=True)
            if row is None:
                return
            row.failures += 1
            pause = min(2**row.failures, LONGEST_PAUSE)
            row.retry_at = func.now() + text(f"interval '{pause} seconds'")
            if row.failures == ALARMING:
                tx.publish(
                    AlertRaised(
                        service=self._runtime.name,
                        severity="critical",
                        title="A period cannot be charged",
                        details={
                            "organization": ended.organization,
                            "period": ended.start.isoformat(),
                            "error": f"{type(error).__name__}: {error}"[:500],
                        },
                    )
                )


async def close(charge: Callable[[], None], event: BillingTick, tx: Tx) -> None:
    await due.ended(tx, event.period_start, event.period_end)
    tx.after_commit(charge)


async def settle(tx: Tx, ended: Ended, currency: str) -> None:
    """Charges what is owed for the period and has not been charged."""
    connection = await tx.connection()
    cursor = await connection.execute(
        _SPANS, {"organization": ended.organization, "start": ended.start, "end": ended.end}, prepare=True
    )
    spans = [span_of(row) for row in await cursor.fetchall()]
    if any(span.rate.currency != currency for span in spans):
        raise InvalidInput(
            f"{ended.organization} has used what is not priced in {currency}; set BERTH_CURRENCY back"
        )
    cursor = await connection.execute(_CHARGED, (ended.organization, ended.start), prepare=True)
    charged, round = {}, 0
    for instance, workload, seconds, micros, last_round in await cursor.fetchall():
        charged[instance] = Line(instance, workload, seconds, micros)
        round = max(round, last_round + 1)
    lines = differences(rate(spans, ended.start, ended.end), charged)
    if not lines:
        return
    total = sum(line.micros for line in lines)
    posting = None
    if total:
        posting = f"{ended.organization}.{ended.start:%Y%m%dT%H%M%SZ}.{round}"
        amount = Money(micros=-total, currency=currency)
        await ledger.post(
            tx,
            id=posting,
            kind="charge",
            organization=ended.organization,
            amount=amount,
            note=_note(ended, round),
        )
    for line in lines:
        tx.add(
            ChargeRow(
                period=ended.start,
                instance=line.instance,
                round=round,
                organization=ended.organization,
                workload=line.workload,
                seconds=line.seconds,
                micros=line.micros,
                posting=posting,
            )
        )


def span_of(row: Sequence[Any]) -> Span:
    instance, workload, process, index, micros_per_hour, currency, started_at, ended_at = row
    price = Rate(micros_per_hour=micros_per_hour, currency=currency)
    return Span(instance, workload, process, index, price, started_at, ended_at)


def _note(ended: Ended, round: int) -> str:
    what = "Correction of usage" if round else "Usage"
    return f"{what} {ended.start:%Y-%m-%d %H:%M:%S} to {ended.end:%Y-%m-%d %H:%M:%S} UTC"
