"""Sweeps: what no message will finish any more is found here, and said again or ended with a reason (I3).

Each takes a small batch, row by row in its own transaction, so that one bad row stops no other.
"""

from datetime import timedelta
from typing import Any

from contracts.events import AppChanged
from runtime.sparing import sparing
from runtime.store import PLATFORM, Tx
from sqlalchemy import func, select

from gateway import accounts, activity, alerts, jobs, lines, sources, tickets, usage, wallets, workloads
from gateway.deployments import requested
from gateway.desk import Desk
from gateway.tables import CreditRow, DeploymentRow, WalletRow, WorkloadRow

_BATCH = 100
# Said again after so long without an answer.
_QUEUED = timedelta(seconds=60)
_DEPLOYING = timedelta(minutes=5)
_UNBOOKED = timedelta(hours=1)


async def sweep(desk: Desk) -> None:
    now = desk.clock.now()
    lost = now - timedelta(minutes=desk.settings.build_minutes)
    for deployment, row in await _overdue(desk, "queued", DeploymentRow.told_at < now - _QUEUED):
        with sparing("a deployment was not asked for again", deployment=deployment):
            await _again(desk, row, deployment)
    for deployment, row in await _overdue(desk, "deploying", DeploymentRow.told_at < now - _DEPLOYING):
        with sparing("a rollout was not told again", deployment=deployment):
            await _again(desk, row, deployment)
    for deployment, row in await _overdue(desk, "building", DeploymentRow.status_at < lost):
        with sparing("a silent build was not ended", deployment=deployment):
            await _give_up(desk, row, deployment)
    await jobs.sweep(desk)
    await _suspend(desk)


async def tidy(desk: Desk) -> None:
    await sources.prune(desk)
    await accounts.forget_attempts(desk)
    await alerts.forget(desk)
    await activity.forget(desk)
    await tickets.forget(desk)
    await jobs.forget(desk)
    await lines.forget(desk)
    await _grant_again(desk)


async def _grant_again(desk: Desk) -> None:
    """Credit of which billing has not spoken: it may not have heard of it, or we not of that. Once a day, by
    one name, so that one that cannot be booked is parked once a day and not at every look."""
    now = desk.clock.now()
    async with desk.store.transaction(PLATFORM) as tx:
        late = await tx.scalars(
            select(CreditRow)
            .where(~CreditRow.booked, CreditRow.created_at < now - _UNBOOKED)
            .order_by(CreditRow.id)
            .limit(_BATCH)
        )
        for row in late:
            tx.publish(usage.granted(row).model_copy(update={"id": f"{row.id}-{now:%Y%m%d}"}))


async def _overdue(desk: Desk, status: str, overdue: Any) -> list[tuple[str, str]]:
    async with desk.store.transaction(PLATFORM) as tx:
        found = await tx.execute(
            select(DeploymentRow.id, DeploymentRow.workload)
            .where(DeploymentRow.status == status, overdue)
            .order_by(DeploymentRow.told_at)
            .limit(_BATCH)
        )
        return [(late.id, late.workload) for late in found]


async def _again(desk: Desk, workload: str, deployment: str) -> None:
    """The same words once more: to whoever has heard them they change nothing."""
    async with desk.store.transaction(PLATFORM) as tx:
        row, waiting = await _both(tx, workload, deployment)
        if row is None or waiting is None:
            return
        waiting.told_at = func.now()
        if waiting.status == "queued":
            waiting.reason = "no builder has taken it up yet; it is asked for again"
            tx.publish(await requested(tx, row, waiting))
        elif waiting.status == "deploying" and row.deployment == waiting.id:
            waiting.reason = "no node has said yet how it went; they are told again"
            tx.publish(AppChanged(spec=workloads.spec_of(row)))
        await workloads.settle(tx, row)


async def _give_up(desk: Desk, workload: str, deployment: str) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        row, silent = await _both(tx, workload, deployment)
        if row is None or silent is None or silent.status != "building":
            return
        silent.status = "failed"
        silent.reason = f"the build said nothing for {desk.settings.build_minutes:g} minutes; deploy again"
        silent.status_at = silent.finished_at = func.now()
        await workloads.settle(tx, row)


async def _both(tx: Tx, workload: str, deployment: str) -> tuple[WorkloadRow | None, DeploymentRow | None]:
    return await workloads.find(tx, workload), await tx.get(DeploymentRow, deployment, lock=True)


async def _suspend(desk: Desk) -> None:
    """What runs although there is no money: a wallet's word and a start may have crossed."""
    async with desk.store.transaction(PLATFORM) as tx:
        found = await tx.execute(
            select(WalletRow.organization)
            .where(
                WalletRow.micros <= 0,
                select(WorkloadRow.id)
                .where(
                    WorkloadRow.organization == WalletRow.organization,
                    WorkloadRow.state == "running",
                    WorkloadRow.image.is_not(None),
                )
                .exists(),
            )
            .limit(_BATCH)
        )
        organizations = [wallet.organization for wallet in found]
    for organization in organizations:
        with sparing("what runs without money goes on", organization=organization):
            await _apply(desk, organization)


async def _apply(desk: Desk, organization: str) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await wallets.apply(tx, organization)
