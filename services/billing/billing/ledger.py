"""The double-entry ledger: whatever a wallet gains or loses, an account of the platform loses or gains.

Invariant: a posting is booked once (its id says what it books), its entries sum to zero, and the wallet moves
with it in one transaction. Nothing else writes these tables. Called for `credit.granted` and by `charging`.
"""

from typing import Literal

from contracts.errors import InvalidInput
from contracts.events import CreditGranted, WalletChanged
from contracts.money import Money
from runtime.store import Tx
from sqlalchemy.dialects.postgresql import insert

from billing.tables import EntryRow, PostingRow, WalletRow


async def credit(event: CreditGranted, tx: Tx) -> None:
    # A credit of nothing changes nothing, and a ledger has no entries of nothing.
    if event.amount.micros:
        await post(
            tx,
            id=event.credit,
            kind="credit",
            organization=event.organization,
            amount=event.amount,
            note=event.note,
        )


async def post(
    tx: Tx, *, id: str, kind: Literal["credit", "charge"], organization: str, amount: Money, note: str
) -> None:
    """The wallet gains `amount`; where the posting has been booked before, it is only said again."""
    wallet = await _locked(tx, organization, amount.currency)
    if wallet.currency != amount.currency:
        raise InvalidInput(
            f"the wallet of {organization} is kept in {wallet.currency}, not in {amount.currency}",
            organization=organization,
        )
    # Looked for under the wallet's lock: whoever booked it before has committed.
    if await tx.get(PostingRow, id) is None:
        wallet.balance += amount.micros
        wallet.sequence += 1
        tx.add(PostingRow(id=id, organization=organization, sequence=wallet.sequence, kind=kind, note=note))
        await tx.flush()
        other = "credits" if kind == "credit" else "revenue"
        for account, micros in (("wallet", amount.micros), (other, -amount.micros)):
            tx.add(EntryRow(posting=id, account=account, organization=organization, micros=micros))
    tx.publish(
        WalletChanged(
            organization=organization,
            sequence=wallet.sequence,
            balance=Money(micros=wallet.balance, currency=wallet.currency),
            credit=id if kind == "credit" else None,
        )
    )


async def _locked(tx: Tx, organization: str, currency: str) -> WalletRow:
    await tx.execute(
        insert(WalletRow)
        .values(organization=organization, currency=currency, balance=0, sequence=0)
        .on_conflict_do_nothing()
    )
    wallet = await tx.get(WalletRow, organization, lock=True)
    assert wallet is not None
    return wallet
