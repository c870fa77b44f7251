"""Answers what an organization has, what it has used since, and what it was charged and credited.

Invariant: balance and use are read in one snapshot, so a charge that happens meanwhile is in one of the two.
Reads only, inside the organization's row-level security. Called for queries.
"""

from datetime import datetime

from contracts.money import Money
from contracts.queries import Charge, LedgerEntry, Statement, StatementOf, Wallet, WalletOf
from runtime.runtime import Runtime
from runtime.store import scoped

from billing.charging import span_of
from billing.rating import EPOCH, rate

# What has not been charged begins with the first period that is still due, or with the current one.
_WALLET = scoped(
    """
    select uncharged.since, coalesce(wallet.currency, %s), coalesce(wallet.balance, 0),
        coalesce((
            select sum(micros) from charge
            where charge.organization = scope.organization and charge.period >= uncharged.since
        ), 0)::bigint,
        span.instance, span.workload, span.process, span.index, span.micros_per_hour, span.currency,
        span.started_at, coalesce(span.stopped_at, span.unseen_since)
    from (
        select coalesce(
            (select min(period) from due where due.organization = scope.organization),
            (select max(ends_at) from period)
        ) as since
    ) uncharged
    left join wallet on wallet.organization = scope.organization
    left join span on span.organization = scope.organization
        and (span.stopped_at is null or uncharged.since is null or span.stopped_at > uncharged.since)
    """
)

_CHARGES = scoped(
    """
    select charge.workload, period.starts_at, period.ends_at, sum(seconds)::bigint, sum(micros)::bigint,
        (select currency from wallet where wallet.organization = scope.organization)
    from charge join period on period.starts_at = charge.period
    where charge.organization = scope.organization
    group by period.starts_at, period.ends_at, charge.workload
    having sum(seconds) <> 0 or sum(micros) <> 0
    order by period.starts_at desc, charge.workload limit %s
    """
)

_ENTRIES = scoped(
    """
    select posting.id, posting.at, posting.kind, entry.micros, wallet.currency, posting.note
    from posting
    join wallet on wallet.organization = posting.organization
    join entry on entry.posting = posting.id and entry.account = 'wallet'
    where posting.organization = scope.organization
    order by posting.sequence desc limit %s
    """
)


class Wallets:
    def __init__(self, runtime: Runtime, currency: str) -> None:
        self._runtime = runtime
        self._currency = currency

    async def wallet(self, query: WalletOf) -> Wallet:
        now = self._runtime.clock.now()
        rows = await self._runtime.store.read(_WALLET, (query.organization, self._currency))
        since, currency, balance, charged = rows[0][:4]
        spans = [span_of(row[4:]) for row in rows if row[4] is not None]
        used = sum(line.micros for line in rate(spans, since or EPOCH, now))
        return Wallet(
            organization=query.organization,
            balance=Money(micros=balance, currency=currency),
            accrued=Money(micros=used - charged, currency=currency),
        )

    async def statement(self, query: StatementOf) -> Statement:
        charges = await self._runtime.store.read(_CHARGES, (query.organization, query.limit))
        entries = await self._runtime.store.read(_ENTRIES, (query.organization, query.limit))
        return Statement(charges=tuple(map(self._charge, charges)), entries=tuple(map(_entry, entries)))

    def _charge(self, row: tuple[str, datetime, datetime, int, int, str | None]) -> Charge:
        workload, start, end, seconds, micros, currency = row
        return Charge(
            workload=workload,
            period_start=start,
            period_end=end,
            seconds=seconds,
            # Free use has charges, and perhaps no wallet yet.
            amount=Money(micros=micros, currency=currency or self._currency),
        )


def _entry(row: tuple[str, datetime, str, int, str, str]) -> LedgerEntry:
    id, at, kind, micros, currency, note = row
    amount = Money(micros=micros, currency=currency)
    return LedgerEntry.model_validate({"id": id, "at": at, "kind": kind, "amount": amount, "note": note})
