"""The gateway's view of money: may this organization start something, and what stops when it may not.

Billing owns the wallet; here is its last word (the highest sequence wins). Suspension is an intent like any
other: the workloads are stopped, and everything else follows from that.
"""

from contracts.errors import PaymentRequired
from contracts.events import WalletChanged
from runtime.store import Tx
from sqlalchemy import select, true, update
from sqlalchemy.dialects.postgresql import insert

from gateway import funds, jobs, workloads
from gateway.tables import CreditRow, WalletRow, WorkloadRow


async def changed(event: WalletChanged, tx: Tx) -> None:
    said = {
        "sequence": event.sequence,
        "micros": event.balance.micros,
        "currency": event.balance.currency,
    }
    written = await tx.execute(
        insert(WalletRow)
        .values(organization=event.organization, **said)
        .on_conflict_do_update(
            index_elements=["organization"], set_=said, where=WalletRow.sequence < event.sequence
        )
        .returning(WalletRow.organization)
    )
    heard = written.first() is not None
    if await _book(tx, event) or heard:
        await apply(tx, event.organization)


async def _book(tx: Tx, event: WalletChanged) -> bool:
    """A credit counts for itself until billing says that the balance has it, in however old a word."""
    booked = await tx.execute(
        update(CreditRow)
        .where(CreditRow.id == event.credit, CreditRow.organization == event.organization, ~CreditRow.booked)
        .values(booked=True)
        .returning(CreditRow.id)
    )
    return booked.first() is not None


async def apply(tx: Tx, organization: str) -> None:
    """Without money everything that runs, or is on its way to, is suspended."""
    empty = await funds.of(tx, organization) <= 0
    # All of them are locked, the stopped too: one that is being started right now is seen once it has been.
    rows = await tx.scalars(
        select(WorkloadRow)
        .where(
            WorkloadRow.organization == organization,
            WorkloadRow.state != "deleted",
            true() if empty else WorkloadRow.suspended,
        )
        .order_by(WorkloadRow.id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
    for row in rows:
        if empty and runs(row):
            await workloads.suspend(tx, row)
            continue
        if empty:
            # Commands of a stopped app cost as much as others.
            await jobs.cancel_all(tx, row.id, "run", "cron")
        if row.suspended:
            await workloads.settle(tx, row)


def runs(row: WorkloadRow) -> bool:
    return (row.state == "running" and row.image is not None) or row.status in ("building", "deploying")


async def require_funds(tx: Tx, organization: str) -> None:
    """Asked with the workload's row locked, so that a wallet that runs dry now finds it (see `apply`)."""
    if await funds.of(tx, organization) <= 0:
        raise PaymentRequired("the wallet is empty; add credit and try again", organization=organization)
