"""Long work is a row with a lease: who holds it, until when, and how often it was begun.

A holder renews while it works. When it dies the lease runs out, and the row can be claimed again: nothing
stays "building" for ever.
"""

from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import DateTime, Text, func, or_, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from runtime.store import PLATFORM, Store, Tx


class Leased:
    """Mixin: the columns of a row that one worker at a time may hold."""

    lease_holder: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    attempts: Mapped[int] = mapped_column(server_default="0")


L = TypeVar("L", bound=Leased)


def _end(seconds: float) -> Any:
    # The database's clock is the one clock all holders share.
    return func.now() + text(f"interval '{float(seconds)} seconds'")


async def claim(tx: Tx, row: type[L], *where: Any, holder: str, seconds: float, order_by: Any) -> L | None:
    """The first free row that fits, now held by `holder`; rows others are claiming are passed over."""
    free = or_(row.lease_until.is_(None), row.lease_until < func.now())
    primary = row.__mapper__.primary_key[0]  # type: ignore[attr-defined]
    first = select(primary).where(*where, free).order_by(order_by).limit(1).with_for_update(skip_locked=True)
    return await tx.one(
        update(row)
        .where(primary == first.scalar_subquery())
        .values(lease_holder=holder, lease_until=_end(seconds), attempts=row.attempts + 1)
        .returning(row)
        .execution_options(populate_existing=True)
    )


async def renew(store: Store, row: type[L], key: Any, holder: str, seconds: float) -> bool:
    """False when the lease was lost: the work belongs to somebody else now and must stop."""
    async with store.transaction(PLATFORM) as tx:
        primary = row.__mapper__.primary_key[0]  # type: ignore[attr-defined]
        result = await tx.execute(
            update(row)
            .where(primary == key, row.lease_holder == holder, row.lease_until > func.now())
            .values(lease_until=_end(seconds))
            .returning(primary)
        )
        return result.first() is not None


def release(row: Leased) -> None:
    row.lease_holder = None
    row.lease_until = None
