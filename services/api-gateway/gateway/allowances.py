"""How often an organization may do what is dear, kept in Postgres: every gateway counts the same.

An hour's worth may be used at once; what was used comes back evenly. A moment is all that is stored: when the
whole allowance will be there again.
"""

import math
from datetime import timedelta

from contracts.errors import QuotaExceeded
from runtime.store import Tx
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from gateway.tables import AllowanceRow

_HOUR = timedelta(hours=1)


async def spend(tx: Tx, organization: str, kind: str, per_hour: int) -> None:
    step = _HOUR / per_hour
    whole_at = func.greatest(AllowanceRow.whole_at, func.now()) + step
    spent = await tx.execute(
        insert(AllowanceRow)
        .values(organization=organization, kind=kind, whole_at=func.now() + step)
        .on_conflict_do_update(
            index_elements=[AllowanceRow.organization, AllowanceRow.kind],
            set_={"whole_at": whole_at},
            where=whole_at <= func.now() + _HOUR,
        )
        .returning(AllowanceRow.whole_at)
    )
    if spent.first() is not None:
        return
    left = await tx.execute(
        select(AllowanceRow.whole_at + step - _HOUR - func.now()).where(
            AllowanceRow.organization == organization, AllowanceRow.kind == kind
        )
    )
    seconds = max(1, math.ceil(left.scalar_one().total_seconds()))
    raise QuotaExceeded(
        f"the organization has used its {per_hour} {kind}s an hour; the next is free in {seconds} s",
        retry_after=seconds,
        per_hour=per_hour,
    )
