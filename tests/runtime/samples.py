"""Events and specifications to try the chassis with."""

from datetime import UTC, datetime, timedelta

from contracts.events import AppCreated, BillingTick
from contracts.ids import new_id
from contracts.money import Rate
from contracts.workload import Limits, WorkloadSpec

START = datetime(2026, 1, 1, tzinfo=UTC)


def tick(hour: int) -> BillingTick:
    start = START + timedelta(hours=hour)
    return BillingTick(id=f"tick-{hour}", period_start=start, period_end=start + timedelta(hours=1))


def spec(name: str = "shop", generation: int = 1, organization: str | None = None) -> WorkloadSpec:
    return WorkloadSpec(
        id=new_id("app"),
        name=name,
        organization=organization or new_id("org"),
        project=new_id("prj"),
        generation=generation,
        state="running",
        region="local",
        plan="small",
        limits=Limits(cpu_millis=250, memory_mb=128, disk_mb=1024),
        rate=Rate(micros_per_hour=7000, currency="USD"),
        uid=100_000,
    )


def created(name: str = "shop") -> AppCreated:
    return AppCreated(spec=spec(name))
