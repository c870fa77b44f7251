"""Alerts: what the platform has to tell its administrator about itself."""

from contracts.api import AlertList
from contracts.events import AlertRaised
from fastapi import APIRouter, Response
from runtime.store import PLATFORM, Tx
from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert

from gateway import pages
from gateway.desk import Desk
from gateway.permissions import Administrator
from gateway.tables import AlertRow

router = APIRouter(prefix="/api/admin", tags=["alerts"])

_KEPT = text("interval '90 days'")
_LIST = pages.page(
    "alerts",
    """json_build_object(
        'id', a.id, 'service', a.service, 'severity', a.severity, 'title', a.title,
        'details', a.details, 'at', a.at
    )""",
    "from alert a where scope.organization is not null and {after}",
    "a.number",
)


@router.get("/alerts", response_model=AlertList)
async def list_alerts(caller: Administrator, after: str | None = None) -> Response:
    return await pages.listed(caller.desk.store, _LIST, PLATFORM, after=pages.number(after))


async def raised(event: AlertRaised, tx: Tx) -> None:
    await tx.execute(
        insert(AlertRow)
        .values(
            id=event.id,
            service=event.service,
            severity=event.severity,
            title=event.title,
            details=event.details,
            at=event.at,
        )
        .on_conflict_do_nothing(index_elements=["id"])
    )


async def forget(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(delete(AlertRow).where(AlertRow.at < func.now() - _KEPT))
