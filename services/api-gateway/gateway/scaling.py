"""Routes of an app's size: what it is, what it could be, what that would cost; and the change of its plan.

A plan's limits and price are frozen into the app at the moment it is chosen. A change of plan replaces the
instances, and the new rate counts from the moment each new one starts.
"""

from decimal import Decimal
from typing import Annotated

from contracts.api import AppDetail, ChoosePlan, PlanChoice, Projection, ScalingView
from contracts.errors import InvalidInput
from contracts.money import Money
from fastapi import APIRouter, Query, Response
from runtime.store import Tx
from sqlalchemy import select

from gateway import apps, funds, plans, runtimes, volumes, wallets, workloads
from gateway.permissions import Member
from gateway.tables import PlanRow, WorkloadRow

router = APIRouter(prefix="/api", tags=["scaling"])


@router.get("/paas/apps/{app}/scaling")
async def show_scaling(
    app: str, caller: Member, replicas: Annotated[int | None, Query(ge=1, le=100)] = None
) -> ScalingView:
    """`?replicas=` shows what so many would cost."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        offered = await tx.scalars(
            select(PlanRow)
            .where(PlanRow.active | (PlanRow.name == row.plan))
            .order_by(PlanRow.micros_per_hour, PlanRow.name)
        )
        balance = await funds.of(tx, row.organization)
        current = next((plan for plan in offered if plan.name == row.plan), None)
        return ScalingView(
            plan=row.plan,
            replicas=row.replicas,
            max_replicas=row.replicas if current is None else current.max_replicas,
            processes={name: process["replicas"] for name, process in row.processes.items()},
            now=_projection(row, row.replicas, balance),
            projected=None if replicas is None else _projection(row, replicas, balance),
            plans=tuple([await _choice(tx, row, plan) for plan in offered]),
        )


@router.put("/paas/apps/{app}/plan", response_model=AppDetail)
async def change_plan(app: str, chosen: ChoosePlan, caller: Member) -> Response:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        plan = await plans.offered_plan(tx, chosen.plan)
        if plan.name != row.plan:
            against = await _obstacles(tx, row, plan)
            if against:
                raise InvalidInput(
                    f"the app does not fit the plan {plan.name}: {'; '.join(against)}",
                    plan=plan.name,
                    obstacles=against,
                )
            if plan.micros_per_hour > row.micros_per_hour:
                await wallets.require_funds(tx, row.organization)
            row.plan, row.limits = plan.name, plan.limits
            row.micros_per_hour, row.currency = plan.micros_per_hour, plan.currency
            workloads.change(tx, row)
            await workloads.settle(tx, row)
    return await apps.shown(caller, app)


async def _choice(tx: Tx, row: WorkloadRow, plan: PlanRow) -> PlanChoice:
    return PlanChoice(
        name=plan.name,
        title=plan.title,
        hourly=Money(micros=plan.micros_per_hour, currency=plan.currency),
        direction=(
            "current"
            if plan.name == row.plan
            else "upgrade"
            if plan.micros_per_hour > row.micros_per_hour
            else "downgrade"
        ),
        obstacles=tuple(await _obstacles(tx, row, plan)),
    )


async def _obstacles(tx: Tx, row: WorkloadRow, plan: PlanRow) -> list[str]:
    found = []
    if row.replicas > plan.max_replicas:
        found.append(f"it has {row.replicas} instances and the plan allows {plan.max_replicas}; scale down")
    held = sum(volume.size_mb for volume in volumes.volumes_of(row))
    if held > plan.volume_mb:
        found.append(f"its volumes have {held} MB and the plan allows {plan.volume_mb} MB")
    runtime = row.build.get("runtime")
    if runtime is not None and runtime not in [r.name for r in await runtimes.allowed(tx, plan)]:
        found.append(f"the plan has no runtime {runtime}; choose another one for the app")
    return found


def _projection(row: WorkloadRow, replicas: int, balance: int) -> Projection:
    hourly = row.micros_per_hour * replicas
    return Projection(
        replicas=replicas,
        hourly=Money(micros=hourly, currency=row.currency),
        balance=Money(micros=balance, currency=row.currency),
        hours_left=None if hourly == 0 else float(round(Decimal(max(balance, 0)) / hourly, 1)),
    )
