"""What a new platform offers until its administrator decides otherwise."""

from contracts.workload import Limits
from runtime.store import PLATFORM
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from gateway.desk import Desk
from gateway.tables import PlanRow, RuntimeRow

_PLANS = (
    {
        "name": "nano",
        "title": "Nano",
        "limits": Limits(cpu_millis=250, memory_mb=128, disk_mb=1024, pids=128).model_dump(),
        "max_replicas": 2,
        "micros_per_hour": 3_000,
        "micros_per_month": 2_000_000,
    },
    {
        "name": "small",
        "title": "Small",
        "limits": Limits(cpu_millis=500, memory_mb=512, disk_mb=4096, pids=256).model_dump(),
        "max_replicas": 4,
        "micros_per_hour": 9_600,
        "micros_per_month": 7_000_000,
    },
    {
        "name": "medium",
        "title": "Medium",
        "limits": Limits(cpu_millis=1000, memory_mb=1024, disk_mb=8192, pids=512).model_dump(),
        "max_replicas": 10,
        "micros_per_hour": 20_500,
        "micros_per_month": 15_000_000,
    },
)
_RUNTIMES = (
    {
        "name": "python-3.11",
        "type": "python",
        "version": "3.11",
        "image": "berth/python:3.11",
        "build_image": "berth/python:3.11-build",
    },
)


async def seed(desk: Desk) -> None:
    """Only into empty tables: what an administrator has taken away stays away."""
    async with desk.store.transaction(PLATFORM) as tx:
        if not await tx.one(select(func.count()).select_from(PlanRow)):
            plans = [{**plan, "currency": desk.currency} for plan in _PLANS]
            await tx.execute(insert(PlanRow).values(plans).on_conflict_do_nothing())
        if not await tx.one(select(func.count()).select_from(RuntimeRow)):
            await tx.execute(insert(RuntimeRow).values(list(_RUNTIMES)).on_conflict_do_nothing())
