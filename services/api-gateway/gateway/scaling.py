"""Routes of an app's size: what it is, what it could be, what that would cost; and the change of its plan.

A plan's limits and price are frozen into the app at the moment it is chosen. A change of plan replaces the
instances, and the new rate counts from the moment each new one starts.
"""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated

import structlog
from contracts.api import AppDetail
from contracts.errors import InvalidInput, Unavailable
from contracts.money import Money
from contracts.queries import InstanceUse, UsageOf, WorkloadUsage
from contracts.scaling_api import AutoscaleRule, ChoosePlan, PlanChoice, Projection, ScalingView
from contracts.workload import Limits, Process
from fastapi import APIRouter, Query, Response
from runtime.sparing import sparing
from runtime.store import PLATFORM, Tx
from sqlalchemy import select

from gateway import funds, plans, runtimes, volumes, wallets, workloads
from gateway.apps import shown
from gateway.autoscale import Watched, decide, load_of, with_requests
from gateway.desk import Desk
from gateway.permissions import Member, Speaker
from gateway.tables import PlanRow, WorkloadRow

log = structlog.get_logger("gateway.scaling")

router = APIRouter(prefix="/api", tags=["scaling"])


@router.get("/paas/apps/{app}/scaling")
async def show_scaling(
    app: str, caller: Member, replicas: Annotated[int | None, Query(ge=1, le=100)] = None
) -> ScalingView:
    """`?replicas=` shows what so many would cost."""
    used = await _used(caller, app)
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        offered = await tx.scalars(
            select(PlanRow)
            .where(PlanRow.active | (PlanRow.name == row.plan))
            .order_by(PlanRow.micros_per_hour, PlanRow.name)
        )
        balance = await funds.of(tx, row.organization)
        rule = None if row.autoscale is None else AutoscaleRule.model_validate(row.autoscale)
        current = next((plan for plan in offered if plan.name == row.plan), None)
        return ScalingView(
            plan=row.plan,
            replicas=row.replicas,
            max_replicas=row.replicas if current is None else current.max_replicas,
            processes={name: process["replicas"] for name, process in row.processes.items()},
            now=_projection(row, row.replicas, balance),
            projected=None if replicas is None else _projection(row, replicas, balance),
            autoscale=rule,
            load=_rounded(None if used is None else _load(row, rule, used)),
            requests_per_second=_rounded(None if used is None else used.traffic.per_second),
            plans=tuple([await _choice(tx, row, plan, used) for plan in offered]),
        )


@router.put("/paas/apps/{app}/plan", response_model=AppDetail)
async def change_plan(app: str, chosen: ChoosePlan, caller: Member) -> Response:
    used = await _used(caller, app)
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        plan = await plans.offered_plan(tx, chosen.plan)
        if plan.name != row.plan:
            if used is None and Limits.model_validate(plan.limits).memory_mb < row.limits["memory_mb"]:
                raise Unavailable("nobody can say now whether the app fits a smaller plan; try again soon")
            against = await _obstacles(tx, row, plan, used)
            if against:
                raise InvalidInput(
                    f"the app does not fit the plan {plan.name}: {'; '.join(against)}",
                    plan=plan.name,
                    obstacles=against,
                )
            if plan.micros_per_hour > row.micros_per_hour:
                await wallets.require_funds(tx, row.organization)
            before = workloads.spec_of(row).fingerprint()
            row.plan, row.limits, row.needs = plan.name, plan.limits, plan.needs
            row.copy_minutes = plan.copy_minutes
            row.micros_per_hour, row.currency = plan.micros_per_hour, plan.currency
            if workloads.spec_of(row).fingerprint() == before:
                # A meter keeps the rate it began with: who would run on unchanged is replaced all the same.
                row.restarts += 1
            workloads.change(tx, row)
            await workloads.settle(tx, row)
    return await shown(caller, app)


@router.put("/paas/apps/{app}/autoscaling")
async def set_rule(app: str, rule: AutoscaleRule, caller: Member) -> AutoscaleRule:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        plan = await tx.get(PlanRow, row.plan)
        if plan is None or not plan.autoscaling:
            raise InvalidInput(
                f"the plan {row.plan} does not scale by itself; choose one that does", plan=row.plan
            )
        if rule.max > plan.max_replicas:
            raise InvalidInput(
                f"the plan {plan.name} allows {plan.max_replicas} instances; choose a smaller max",
                max_replicas=plan.max_replicas,
            )
        row.autoscale = rule.model_dump()
        row.above_since = row.below_since = row.scaled_at = None
    return rule


@router.delete("/paas/apps/{app}/autoscaling", status_code=204, response_class=Response)
async def remove_rule(app: str, caller: Member) -> None:
    """It keeps the number of instances it has now."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        (await workloads.locked(tx, app)).autoscale = None


async def scale_by_rules(desk: Desk) -> None:
    """Looks at every app with a rule. Any number of gateways may: what one has done, the next finds done."""
    async with desk.store.transaction(PLATFORM) as tx:
        apps = await tx.scalars(
            select(WorkloadRow.id).where(WorkloadRow.autoscale.is_not(None), WorkloadRow.state == "running")
        )
    for app in apps:
        try:
            with sparing("an app is not scaled by its rule", app=app):
                used = await desk.bus.ask(UsageOf(workload=app))
                async with desk.store.transaction(PLATFORM) as tx:
                    await _scale(tx, app, used, desk.clock.now())
        except Unavailable as error:
            log.info("an app is not scaled now", app=app, error=error.message)


async def _scale(tx: Tx, app: str, used: WorkloadUsage, now: datetime) -> None:
    row = await workloads.find(tx, app)
    if row is None or row.autoscale is None or row.state != "running" or not row.live:
        return
    plan = await tx.get(PlanRow, row.plan)
    if plan is None or not plan.autoscaling:
        return
    rule = AutoscaleRule.model_validate(row.autoscale)
    processes = {name: Process.model_validate(process) for name, process in row.processes.items()}
    web = processes.get("web")
    if web is None:
        return
    watched = Watched(row.above_since, row.below_since, row.scaled_at)
    load = _load(row, rule, used)
    wanted, watched = decide(rule, web.replicas, load, watched, now)
    # What there is stays, also where the plan has come to allow less.
    room = plan.max_replicas - (row.replicas - web.replicas)
    wanted = min(wanted, max(web.replicas, room))
    if wanted > web.replicas and await funds.of(tx, row.organization) <= 0:
        return
    row.above_since, row.below_since, row.scaled_at = (
        watched.above_since,
        watched.below_since,
        watched.scaled_at,
    )
    if wanted != web.replicas:
        log.info("scaled by its rule", app=app, load=load, replicas=web.replicas, wanted=wanted)
        processes["web"] = web.model_copy(update={"replicas": wanted})
        workloads.set_processes(row, processes)
        workloads.change(tx, row)
        await workloads.settle(tx, row)


def _load(row: WorkloadRow, rule: AutoscaleRule | None, used: WorkloadUsage) -> float | None:
    routed = Process.model_validate(row.processes.get("web", {"replicas": 0})).replicas
    load = load_of(used.instances, Limits.model_validate(row.limits))
    return with_requests(load, rule, routed, used.traffic.per_second)


async def _used(caller: Speaker, app: str) -> WorkloadUsage | None:
    """None when nobody can say it now: most is worth answering without."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.locked(tx, app)
    try:
        return await caller.desk.bus.ask(UsageOf(workload=app))
    except Unavailable:
        return None


def _rounded(load: float | None) -> float | None:
    return None if load is None else round(load, 1)


async def _choice(tx: Tx, row: WorkloadRow, plan: PlanRow, used: WorkloadUsage | None) -> PlanChoice:
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
        obstacles=tuple(await _obstacles(tx, row, plan, used)),
    )


async def _obstacles(tx: Tx, row: WorkloadRow, plan: PlanRow, used: WorkloadUsage | None) -> list[str]:
    found = []
    instances: Sequence[InstanceUse] = () if used is None else used.instances
    most, allowed = max((one.memory_mb for one in instances), default=0), plan.limits["memory_mb"]
    if most > allowed:
        found.append(f"an instance of it uses {most} MB of memory and the plan allows {allowed} MB")
    if row.replicas > plan.max_replicas:
        found.append(f"it has {row.replicas} instances and the plan allows {plan.max_replicas}; scale down")
    if row.autoscale is not None:
        most = AutoscaleRule.model_validate(row.autoscale).max
        if not plan.autoscaling:
            found.append("it scales by a rule and apps of the plan do not; DELETE …/autoscaling ends that")
        elif most > plan.max_replicas:
            found.append(
                f"its rule goes up to {most} instances and the plan allows {plan.max_replicas}; "
                "choose a smaller max"
            )
    held = sum(volume.size_mb for volume in volumes.volumes_of(row))
    if held > plan.volume_mb:
        found.append(f"its volumes have {held} MB and the plan allows {plan.volume_mb} MB")
    if row.sleep_minutes is not None and not plan.sleeping:
        found.append(
            "it sleeps when nobody asks for it and apps of the plan do not; DELETE …/sleep ends that"
        )
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
