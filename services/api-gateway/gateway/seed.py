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
# Each of the platform's own images, and where it is built; the static one needs no build.
_RUNTIMES = tuple(
    {
        "name": f"{type}-{version}" if version else type,
        "type": type,
        "version": version or "1",
        "image": f"berth/{type}:{version or '1'}",
        "build_image": f"berth/{type}:{version}-build" if version else None,
    }
    for type, version in (
        ("python", "3.11"),
        ("node", "24"),
        ("php", "8.2"),
        ("ruby", "3.1"),
        ("go", "1.23"),
        ("java", "17"),
        # The number is that of Heroku's stack which it stands for.
        ("buildpack", "22"),
        ("static", None),
    )
)


async def seed(desk: Desk) -> None:
    """Only into empty tables: what an administrator has taken away stays away."""
    async with desk.store.transaction(PLATFORM) as tx:
        if not await tx.one(select(func.count()).select_from(PlanRow)):
            plans = [{**plan, "currency": desk.currency} for plan in _PLANS]
            await tx.execute(insert(PlanRow).values(plans).on_conflict_do_nothing())
        if not await tx.one(select(func.count()).select_from(RuntimeRow)):
            await tx.execute(insert(RuntimeRow).values(list(_RUNTIMES)).on_conflict_do_nothing())
