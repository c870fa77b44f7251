"""Alerts: what the platform has to tell its administrator about itself.

An alert stands until another one tells that it is over, which itself never stands. Whichever of the two is
heard first, the first is over in the end.
"""

from datetime import datetime

from contracts.api import AlertList
from contracts.events import AlertRaised
from fastapi import APIRouter, Response
from runtime.store import PLATFORM, Tx
from sqlalchemy import delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert

from gateway import pages
from gateway.desk import Desk
from gateway.permissions import Administrator
from gateway.tables import AlertRow

router = APIRouter(prefix="/api/admin", tags=["alerts"])

_KEPT = text("interval '90 days'")
_ONE_AT_A_TIME = text("select pg_advisory_xact_lock(hashtext('gateway.alerts'))")
_LIST = pages.page(
    "alerts",
    """json_build_object(
        'id', a.id, 'service', a.service, 'severity', a.severity, 'title', a.title,
        'details', a.details, 'at', a.at, 'over_at', a.over_at
    )""",
    "from alert a where scope.organization is not null and (a.over_at is null or not %s) and {after}",
    "a.number",
)


@router.get("/alerts", response_model=AlertList)
async def list_alerts(caller: Administrator, after: str | None = None, standing: bool = False) -> Response:
    return await pages.listed(caller.desk.store, _LIST, PLATFORM, standing, after=pages.number(after))


async def raised(event: AlertRaised, tx: Tx) -> None:
    await tx.execute(_ONE_AT_A_TIME)
    await tx.execute(
        insert(AlertRow)
        .values(
            id=event.id,
            service=event.service,
            severity=event.severity,
            title=event.title,
            details=event.details,
            at=event.at,
            about=event.about,
            over_at=event.at if event.over else await _end(event, tx),
        )
        .on_conflict_do_nothing(index_elements=["id"])
    )
    if event.over:
        stands = (AlertRow.about == event.about) & AlertRow.over_at.is_(None) & (AlertRow.at <= event.at)
        await tx.execute(update(AlertRow).where(stands).values(over_at=event.at))


async def _end(event: AlertRaised, tx: Tx) -> datetime | None:
    """When it was over, where that was heard before it."""
    if event.about is None:
        return None
    tells = (AlertRow.about == event.about) & (AlertRow.over_at == AlertRow.at) & (AlertRow.at >= event.at)
    found: datetime | None = await tx.one(select(func.min(AlertRow.at)).where(tells))
    return found


async def forget(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(delete(AlertRow).where(AlertRow.at < func.now() - _KEPT))
