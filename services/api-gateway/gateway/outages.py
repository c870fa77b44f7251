"""Tells the administrator of an app that something has been wrong with for too long: it is down, or its
instances end again and again; and when that is over. Called when an app settles, when a node tells of an end,
and by a loop.
"""

from datetime import timedelta
from typing import Literal

from contracts.events import AlertRaised, InstanceCrashed, InstanceStopped
from runtime.store import PLATFORM, Tx
from sqlalchemy import func, literal, or_, select

from gateway.desk import Desk
from gateway.tables import ActivityRow, AlertRow, WorkloadRow

_DOWN = timedelta(minutes=5)
# So many ends within so long are told of, and are over when so long has passed without another.
_OFTEN = 5
_WINDOW = timedelta(minutes=10)
_CALM = timedelta(hours=1)
_ENDS = ("crashed", "restarted")
_BATCH = 100


def mark(tx: Tx, row: WorkloadRow, *, down: bool) -> None:
    """`down`: it should answer, and nothing of it does."""
    if not down:
        if row.down_told:
            tx.publish(_over(row, "down", f"App {row.name} is not down any more", row.state))
        row.down_since, row.down_told = None, False
    elif row.down_since is None:
        row.down_since = func.now()


async def look(desk: Desk) -> None:
    await _tell_of_the_down(desk)
    await _tell_of_the_calm(desk)


async def _tell_of_the_down(desk: Desk) -> None:
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
            # One that came to life is down for another reason than that of a release which did not.
            lived = row.trouble or "no instance answers"
            why = lived if row.silent and row.live else row.reason or row.trouble or row.status
            tx.publish(_alert(row, "critical", "down", title, why))


async def _tell_of_the_calm(desk: Desk) -> None:
    quiet_since = desk.clock.now() - _CALM
    restless = select(ActivityRow.id).where(
        ActivityRow.workload == WorkloadRow.id, ActivityRow.kind.in_(_ENDS), ActivityRow.at > quiet_since
    )
    async with desk.store.transaction(PLATFORM) as tx:
        found = await tx.execute(
            select(WorkloadRow, AlertRow.id)
            .join(AlertRow, AlertRow.about == literal("app/") + WorkloadRow.id + "/restarts")
            .where(AlertRow.over_at.is_(None), AlertRow.at < quiet_since, ~restless.exists())
            .limit(_BATCH)
        )
        for calm in found.all():
            row = calm.WorkloadRow
            title = f"App {row.name} is not restarted any more"
            over = _over(row, "restarts", title, f"not once within {_CALM.seconds // 60} minutes")
            tx.publish(over.model_copy(update={"id": f"over-{calm.id}"}))


async def ended(row: WorkloadRow, event: InstanceCrashed | InstanceStopped, tx: Tx) -> None:
    """An instance that nobody had asked to end. A node counts its crashes, and tells of many at a time."""
    this_hour = f"restarts-{row.id}-{event.at:%Y-%m-%d-%H}"
    told_of = select(func.count()).where(
        ActivityRow.workload == row.id,
        ActivityRow.kind.in_(_ENDS),
        ActivityRow.at > event.at - _WINDOW,
    )
    ends = (await tx.execute(told_of)).scalar_one()
    if isinstance(event, InstanceCrashed):
        ends = max(ends, event.crashes)
    title = f"App {row.name} is restarted again and again"
    alert = _alert(row, "warning", "restarts", title, event.words or "")
    stands = (AlertRow.about == alert.about) & AlertRow.over_at.is_(None)
    known = select(AlertRow.id).where(or_(stands, AlertRow.id == this_hour)).limit(1)
    if ends < _OFTEN or await tx.one(known) is not None:
        return
    tx.publish(alert.model_copy(update={"id": this_hour}))


_Trouble = Literal["down", "restarts"]


def _alert(
    row: WorkloadRow, severity: Literal["warning", "critical"], trouble: _Trouble, title: str, why: str
) -> AlertRaised:
    return AlertRaised(
        service="gateway",
        severity=severity,
        title=title,
        details={"app": row.id, "organization": row.organization, "why": why},
        about=f"app/{row.id}/{trouble}",
    )


def _over(row: WorkloadRow, trouble: _Trouble, title: str, why: str) -> AlertRaised:
    return _alert(row, "warning", trouble, title, why).model_copy(update={"over": True})
