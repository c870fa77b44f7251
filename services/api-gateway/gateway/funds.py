"""What an organization may spend, as far as the gateway knows."""

from runtime.store import Tx
from sqlalchemy import func, select

from gateway.tables import CreditRow, WalletRow


async def of(tx: Tx, organization: str) -> int:
    """Micros. Credit that billing has not booked yet is on its way there, and counts already."""
    wallet = WalletRow.organization == organization
    granted = select(func.sum(CreditRow.micros)).where(
        CreditRow.organization == organization, ~CreditRow.booked
    )
    said = select(WalletRow.micros).where(wallet)
    parts = [func.coalesce(part.scalar_subquery(), 0) for part in (said, granted)]
    return int((await tx.execute(select(parts[0] + parts[1]))).scalar_one())
