"""Tells the administrator of an app that something has been wrong with for too long: it is down, or its
instances end again and again. Called when an app settles, when a node tells of an end, and by a loop.
"""

from datetime import timedelta
from typing import Literal

from contracts.events import AlertRaised, InstanceCrashed, InstanceStopped
from runtime.store import PLATFORM, Tx
from sqlalchemy import func, select

from gateway.desk import Desk
from gateway.tables import ActivityRow, AlertRow, WorkloadRow

_DOWN = timedelta(minutes=5)
# So many ends within so long are told of, once an hour.
_OFTEN = 5
_WINDOW = timedelta(minutes=10)
_BATCH = 100


def mark(row: WorkloadRow, *, down: bool) -> None:
    """`down`: it should answer, and nothing of it does."""
    if not down:
        row.down_since, row.down_told = None, False
    elif row.down_since is None:
        row.down_since = func.now()


async def look(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        found = await tx.scalars(
            select(WorkloadRow)
            .where(WorkloadRow.down_since < desk.clock.now() - _DOWN, WorkloadRow.down_told.is_(False))
            .order_by(WorkloadRow.down_since)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        for row in found:
            row.down_told = True
            title = f"App {row.name} has been down for {_DOWN.seconds // 60} minutes"
            tx.publish(_alert(row, "critical", title, row.reason or row.status))


async def ended(row: WorkloadRow, event: InstanceCrashed | InstanceStopped, tx: Tx) -> None:
    """An instance that nobody had asked to end. A node counts its crashes, and tells of many at a time."""
    this_hour = f"restarts-{row.id}-{event.at:%Y-%m-%d-%H}"
    told_of = select(func.count()).where(
        ActivityRow.workload == row.id,
        ActivityRow.kind.in_(("crashed", "restarted")),
        ActivityRow.at > event.at - _WINDOW,
    )
    ends = (await tx.execute(told_of)).scalar_one()
    if isinstance(event, InstanceCrashed):
        ends = max(ends, event.crashes)
    if ends < _OFTEN or await tx.one(select(AlertRow.id).where(AlertRow.id == this_hour)) is not None:
        return
    alert = _alert(row, "warning", f"App {row.name} is restarted again and again", event.words or "")
    tx.publish(alert.model_copy(update={"id": this_hour}))


def _alert(row: WorkloadRow, severity: Literal["warning", "critical"], title: str, why: str) -> AlertRaised:
    details = {"app": row.id, "organization": row.organization, "why": why}
    return AlertRaised(service="gateway", severity=severity, title=title, details=details)
