"""What an organization may spend, as far as the gateway knows."""

from runtime.store import Tx
from sqlalchemy import func, select

from gateway.tables import CreditRow, WalletRow


async def of(tx: Tx, organization: str) -> int:
    """Micros. Credit granted since billing's last word is on its way there, and counts already."""
    said = await tx.execute(
        select(WalletRow.micros, WalletRow.said_at).where(WalletRow.organization == organization)
    )
    wallet = said.one_or_none()
    granted = select(func.coalesce(func.sum(CreditRow.micros), 0)).where(
        CreditRow.organization == organization
    )
    if wallet is not None:
        granted = granted.where(CreditRow.created_at > wallet.said_at)
    return int(await tx.one(granted) or 0) + (wallet.micros if wallet else 0)
