"""Plans: what a customer can choose from, and the administrator's hand on them.

Prices and limits are copied into an app when it is created; a change of a plan is for apps to come.
"""

from decimal import Decimal

from contracts.errors import Conflict, InvalidInput, NotFound
from contracts.money import MICROS_PER_UNIT, Money
from contracts.scaling_api import (
    ChangePlan,
    CreatePlan,
    OfferedPlan,
    OfferedPlanList,
    PlanList,
    PlanView,
)
from contracts.workload import Limits, Needs
from fastapi import APIRouter
from runtime.store import PLATFORM, Tx
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from gateway import runtimes
from gateway.permissions import Administrator, User
from gateway.tables import PlanRow, RuntimeRow

router = APIRouter(prefix="/api", tags=["plans"])


@router.get("/paas/plans")
async def list_plans(caller: User) -> PlanList:
    async with caller.desk.store.transaction(runtimes.NOBODY) as tx:
        offered = await runtimes.enabled(tx)
        plans = await tx.scalars(
            select(PlanRow).where(PlanRow.active).order_by(PlanRow.micros_per_hour, PlanRow.name)
        )
    return PlanList(plans=tuple(PlanView.model_validate(_view(plan, offered)) for plan in plans))


@router.get("/admin/paas/plans")
async def list_all_plans(caller: Administrator) -> OfferedPlanList:
    async with caller.desk.store.transaction(PLATFORM) as tx:
        offered = await runtimes.enabled(tx)
        plans = await tx.scalars(select(PlanRow).order_by(PlanRow.micros_per_hour, PlanRow.name))
    return OfferedPlanList(plans=tuple(_offered(plan, offered) for plan in plans))


@router.post("/admin/paas/plans", status_code=201)
async def create_plan(new: CreatePlan, caller: Administrator) -> OfferedPlan:
    async with caller.desk.store.transaction(PLATFORM) as tx:
        offered = await _known(tx, new.runtimes)
        written = await tx.execute(
            insert(PlanRow)
            .values(
                name=new.name,
                title=new.title,
                limits=new.limits.model_dump(),
                max_replicas=new.max_replicas,
                volume_mb=new.volume_mb,
                copy_minutes=new.copy_minutes,
                autoscaling=new.autoscaling,
                sleeping=new.sleeping,
                needs=new.needs.model_dump(),
                micros_per_hour=micros(new.hourly),
                micros_per_month=micros(new.monthly),
                currency=caller.desk.currency,
                runtimes=None if new.runtimes is None else list(new.runtimes),
            )
            .on_conflict_do_nothing()
            .returning(PlanRow)
        )
        plan = written.scalar_one_or_none()
        if plan is None:
            raise Conflict("there is a plan of this name already; change it with PATCH", name=new.name)
        return _offered(plan, offered)


@router.patch("/admin/paas/plans/{name}")
async def change_plan(name: str, change: ChangePlan, caller: Administrator) -> OfferedPlan:
    given = change.model_fields_set
    missing = [f for f in given - {"runtimes", "copy_minutes"} if getattr(change, f) is None]
    if missing:
        raise InvalidInput(f"leave out what shall stay, instead of null: {', '.join(sorted(missing))}")
    async with caller.desk.store.transaction(PLATFORM) as tx:
        plan = await tx.get(PlanRow, name, lock=True)
        if plan is None:
            raise NotFound("there is no such plan; GET /api/admin/paas/plans lists them", plan=name)
        offered = await _known(tx, change.runtimes)
        if change.limits is not None:
            plan.limits = change.limits.model_dump()
        if change.needs is not None:
            plan.needs = change.needs.model_dump()
        if change.hourly is not None:
            plan.micros_per_hour = micros(change.hourly)
        if change.monthly is not None:
            plan.micros_per_month = micros(change.monthly)
        if "runtimes" in given:
            plan.runtimes = None if change.runtimes is None else list(change.runtimes)
        plain = {"title", "max_replicas", "volume_mb", "copy_minutes", "autoscaling", "sleeping", "active"}
        for field in given & plain:
            setattr(plan, field, getattr(change, field))
        return _offered(plan, offered)


def micros(amount: str) -> int:
    return int(Decimal(amount) * MICROS_PER_UNIT)


async def offered_plan(tx: Tx, name: str) -> PlanRow:
    plan = await tx.get(PlanRow, name)
    if plan is None or not plan.active:
        names = await tx.scalars(
            select(PlanRow.name).where(PlanRow.active).order_by(PlanRow.micros_per_hour, PlanRow.name)
        )
        raise InvalidInput(
            f"there is no plan {name}; choose one of: {', '.join(names)}", plan=name, available=names
        )
    return plan


async def _known(tx: Tx, names: tuple[str, ...] | None) -> list[RuntimeRow]:
    offered = await runtimes.enabled(tx)
    available = [runtime.name for runtime in offered]
    unknown = sorted(set(names or ()) - set(available))
    if unknown:
        raise InvalidInput(
            f"there is no runtime {', '.join(unknown)}; choose of: {', '.join(available)}",
            runtimes=unknown,
            available=available,
        )
    return offered


def _offered(plan: PlanRow, offered: list[RuntimeRow]) -> OfferedPlan:
    return OfferedPlan.model_validate({**_view(plan, offered), "active": plan.active})


def _view(plan: PlanRow, offered: list[RuntimeRow]) -> dict[str, object]:
    return {
        "name": plan.name,
        "title": plan.title,
        "limits": Limits.model_validate(plan.limits),
        "max_replicas": plan.max_replicas,
        "volume_mb": plan.volume_mb,
        "copy_minutes": plan.copy_minutes,
        "autoscaling": plan.autoscaling,
        "sleeping": plan.sleeping,
        "needs": Needs.model_validate(plan.needs),
        "hourly": Money(micros=plan.micros_per_hour, currency=plan.currency),
        "monthly": Money(micros=plan.micros_per_month, currency=plan.currency),
        "runtimes": [r.name for r in offered if plan.runtimes is None or r.name in plan.runtimes],
    }
