"""Routes of an app's sleep, and what its nodes say of it.

That it may sleep, and when, is the customer's intent and travels with the specification; the moments are its
nodes', which wake it without asking anybody. What is heard here is only shown: a stopped or suspended app has
an order without instances, and no request wakes it.
"""

from datetime import datetime

from contracts.errors import InvalidInput
from contracts.events import SleepChanged
from contracts.scaling_api import SleepRule, SleepView
from fastapi import APIRouter, Response
from runtime.store import Tx

from gateway import activity, workloads
from gateway.permissions import Member
from gateway.tables import PlanRow, WorkloadRow

router = APIRouter(prefix="/api", tags=["scaling"])


@router.get("/paas/apps/{app}/sleep")
async def show_sleep(app: str, caller: Member) -> SleepView:
    async with caller.desk.store.transaction(caller.organization) as tx:
        return _view(await workloads.known(tx, app))


@router.put("/paas/apps/{app}/sleep")
async def set_sleep(app: str, rule: SleepRule, caller: Member) -> SleepView:
    least = caller.desk.settings.least_sleep_minutes
    if rule.after_minutes < least:
        raise InvalidInput(f"an app sleeps after {least:g} minutes at the earliest", least=least)
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        plan = await tx.get(PlanRow, row.plan)
        if plan is None or not plan.sleeping:
            raise InvalidInput(
                f"apps of the plan {row.plan} do not sleep; choose one that does", plan=row.plan
            )
        await _set(tx, row, rule.after_minutes)
        return _view(row)


@router.delete("/paas/apps/{app}/sleep", status_code=204, response_class=Response)
async def remove_sleep(app: str, caller: Member) -> None:
    """If it sleeps just now, this wakes it."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        await _set(tx, await workloads.locked(tx, app), None)


async def _set(tx: Tx, row: WorkloadRow, minutes: float | None) -> None:
    if row.sleep_minutes != minutes:
        row.sleep_minutes = minutes
        workloads.change(tx, row)
        await workloads.settle(tx, row)


def _view(row: WorkloadRow) -> SleepView:
    return SleepView(after_minutes=row.sleep_minutes, asleep=row.status == "sleeping")


# --- what nodes say ----------------------------------------------------------------------------------------


async def changed(event: SleepChanged, tx: Tx) -> None:
    row = await workloads.find(tx, event.workload)
    if row is None or row.organization != event.organization:
        return
    if event.words is not None:
        await activity.slept(event, tx)
    heard(row, event.node, event.at, asleep=event.asleep)
    await workloads.settle(tx, row)


def heard(row: WorkloadRow, node: str, at: datetime, *, asleep: bool) -> None:
    known = row.naps.get(node)
    if known is None or datetime.fromisoformat(known["at"]) <= at:
        row.naps = {**row.naps, node: {"at": at.isoformat(), "asleep": asleep}}
