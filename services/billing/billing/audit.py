"""Counts the money again: a standing check of I4 that trusts nothing the other modules keep.

Every organization's entries sum to zero, so all entries do; its wallet is the sum of its wallet entries, its
postings are as many as the wallet counts, and its charges are what revenue got. Runs as a loop of `app`.
"""

from typing import NamedTuple

from contracts.events import AlertRaised
from runtime.runtime import Runtime
from runtime.store import PLATFORM

# The wallets whose last audit is longest ago: each run is short, and all get their turn.
BATCH = 200

# One statement, so one snapshot: no posting is seen in half.
_AUDIT = """
with chosen as (
    select organization, balance, sequence from wallet order by audited_at nulls first, organization limit %s
), booked as (
    select chosen.*,
        coalesce(sum(entry.micros), 0)::bigint as everything,
        coalesce(sum(entry.micros) filter (where account = 'wallet'), 0)::bigint as wallet,
        coalesce(sum(entry.micros) filter (where account = 'revenue'), 0)::bigint as revenue
    from chosen left join entry on entry.organization = chosen.organization
    group by chosen.organization, chosen.balance, chosen.sequence
)
select organization, sequence, balance, everything, wallet, revenue,
    (select count(*) from posting where posting.organization = booked.organization),
    (select coalesce(sum(micros), 0)::bigint from charge where charge.organization = booked.organization)
from booked
"""

_AUDITED = """
update wallet set audited_at = %s from (
    select organization from wallet where organization = any(%s) order by organization
    for no key update skip locked
) chosen where wallet.organization = chosen.organization
"""


class Books(NamedTuple):
    organization: str
    sequence: int
    balance: int
    everything: int
    wallet: int
    revenue: int
    postings: int
    charges: int


class Audit:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def check(self) -> None:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            rows = await (await connection.execute(_AUDIT, (BATCH,), prepare=True)).fetchall()
            now, organizations = self._runtime.clock.now(), [row[0] for row in rows]
            await connection.execute(_AUDITED, (now, organizations), prepare=True)
            for books in map(Books._make, rows):
                wrong = faults(books)
                if not wrong:
                    continue
                self._runtime.log.error("the books do not balance", organization=books.organization, **wrong)
                tx.publish(
                    AlertRaised(
                        # One alert for one state of the wallet, however often it is looked at.
                        id=f"audit-{books.organization}-{books.sequence}",
                        service=self._runtime.name,
                        severity="critical",
                        title="The books do not balance",
                        details={"organization": books.organization, **wrong},
                    )
                )


def faults(books: Books) -> dict[str, str]:
    found = {}
    if books.everything:
        found["entries"] = f"sum to {books.everything}, not to 0"
    if books.balance != books.wallet:
        found["wallet"] = f"holds {books.balance}, its entries sum to {books.wallet}"
    if books.sequence != books.postings:
        found["postings"] = f"are {books.postings}, the wallet counts {books.sequence}"
    if books.revenue != books.charges:
        found["revenue"] = f"got {books.revenue}, charged were {books.charges}"
    return found
