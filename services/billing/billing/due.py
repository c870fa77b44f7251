"""Which organization's period has to be charged (again): the work `charging` takes.

Invariant: whatever changes about spans, every ended period it touches becomes due, or its tick has yet to
come. Called by `metering` and `silence`, who change spans, and by `charging` for a tick; see `begin`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from contracts.errors import Stale
from runtime.store import Tx

# Who changes spans shares the lock, a tick has it alone: so a tick finds every span that was recorded
# before it, and who records one after it finds the tick's period ended.
_SHARE = "select pg_advisory_xact_lock_shared(hashtext('billing.span'))"
_ALONE = "select pg_advisory_xact_lock(hashtext('billing.span'))"

# An update, though it says little: it holds the row until the commit, so nobody takes and finishes the work
# without seeing what made it due.
_TOUCHED = """
insert into due (period, organization)
select distinct period.starts_at, changed.organization
from unnest(%s::text[], %s::timestamptz[], %s::timestamptz[]) as changed(organization, since, until)
join period on tstzrange(period.starts_at, period.ends_at) && tstzrange(changed.since, changed.until)
order by 1, 2
on conflict (period, organization) do update set retry_at = null
"""

_RECORDED = "select from period where starts_at = %s and ends_at = %s"

_ENDED = """
insert into due (period, organization)
select %(start)s, organization from (
    select organization from span where stopped_at is null and started_at < %(end)s
    union select organization from span where stopped_at > %(start)s and started_at < %(end)s
) ran order by organization
on conflict (period, organization) do update set retry_at = null
"""


@dataclass(frozen=True, slots=True)
class Changed:
    """From `since` until `until` (None: for ever) an instance runs that did not before, or the reverse."""

    organization: str
    since: datetime
    until: datetime | None


def changed_end(organization: str, old: datetime | None, new: datetime | None) -> Changed:
    """What it means that an instance ends at another time (None: not yet) than was believed."""
    if old is None or new is None:
        since = old or new
        assert since is not None, "an end that stays open is no change"
        return Changed(organization, since, None)
    return Changed(organization, min(old, new), max(old, new))


async def begin(tx: Tx) -> None:
    """Comes first in a transaction that changes spans."""
    await (await tx.connection()).execute(_SHARE, prepare=True)


async def begin_alone(tx: Tx) -> None:
    """Comes first where every span has to be seen that was recorded before, and whoever records one after has
    to see what is written here."""
    await (await tx.connection()).execute(_ALONE, prepare=True)


async def touched(tx: Tx, changes: Iterable[Changed]) -> None:
    real = [c for c in changes if c.until is None or c.since < c.until]
    if not real:
        return
    await (await tx.connection()).execute(
        _TOUCHED,
        ([c.organization for c in real], [c.since for c in real], [c.until for c in real]),
        prepare=True,
    )


async def ended(tx: Tx, start: datetime, end: datetime) -> None:
    """Makes the period due for everybody of whom something ran in it."""
    await begin_alone(tx)
    connection = await tx.connection()
    recorded = await connection.execute(_RECORDED, (start, end), prepare=True)
    if await recorded.fetchone() is None:
        raise Stale(f"no period from {start} to {end} has ended here")
    await connection.execute(_ENDED, {"start": start, "end": end}, prepare=True)
