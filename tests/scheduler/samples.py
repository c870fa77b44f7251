"""Specifications, reports and events as gateway and agents would send them."""

from datetime import UTC, datetime
from typing import Any

from contracts.events import InstanceStopped
from contracts.ids import new_id
from contracts.money import Rate
from contracts.reports import NodeCapacity, NodeHeartbeat, NodeUsage, RunningInstance
from contracts.workload import Limits, Slot, WorkloadSpec

SMALL = Limits(cpu_millis=100, memory_mb=128, disk_mb=256)
RATE = Rate(micros_per_hour=7000, currency="USD")
IDLE = NodeUsage(cpu_millis=0, memory_mb=0, disk_mb=0, load=0.0)


def spec(**changes: Any) -> WorkloadSpec:
    fields: dict[str, Any] = {
        "id": new_id("app"),
        "name": "shop",
        "organization": new_id("org"),
        "project": new_id("prj"),
        "generation": 1,
        "state": "running",
        "region": "eu",
        "plan": "small",
        "limits": SMALL,
        "rate": RATE,
        "uid": 100_000,
        "image": "registry.localhost/shop@sha256:1",
        "deployment": new_id("dep"),
    }
    return WorkloadSpec.model_validate(fields | changes)


def newer(known: WorkloadSpec, **changes: Any) -> WorkloadSpec:
    return WorkloadSpec.model_validate(known.model_dump() | {"generation": known.generation + 1} | changes)


def heartbeat(
    node: str = "n1",
    sequence: int = 1,
    *,
    region: str = "eu",
    boot: str = "boot-1",
    at: datetime | None = None,
    memory_mb: int = 1024,
    cpu_millis: int = 4000,
    disk_mb: int = 100_000,
    used: NodeUsage = IDLE,
    instances: tuple[RunningInstance, ...] = (),
    architecture: str | None = None,
    runtimes: tuple[str, ...] = (),
    engine_away: bool = False,
) -> NodeHeartbeat:
    return NodeHeartbeat(
        node=node,
        region=region,
        boot=boot,
        sequence=sequence,
        at=at or datetime.now(UTC),
        capacity=NodeCapacity(cpu_millis=cpu_millis, memory_mb=memory_mb, disk_mb=disk_mb),
        used=used,
        engine="docker 20.10",
        instances=instances,
        architecture=architecture,
        runtimes=runtimes,
        engine_away=engine_away,
    )


def running(of: WorkloadSpec, index: int = 0) -> RunningInstance:
    return RunningInstance(
        instance=new_id("ins"),
        workload=of.id,
        organization=of.organization,
        slot=Slot(process="web", index=index),
        generation=of.generation,
        deployment=of.deployment,
        rate=of.rate,
        started_at=datetime.now(UTC),
        healthy=True,
    )


def stopped(of: WorkloadSpec, node: str = "n1", index: int = 0, **changes: Any) -> InstanceStopped:
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "node": node,
        "instance": new_id("ins"),
        "workload": of.id,
        "organization": of.organization,
        "slot": Slot(process="web", index=index),
        "generation": of.generation,
        "deployment": of.deployment,
        "rate": of.rate,
        "started_at": now,
        "stopped_at": now,
        "reason": "stopped",
    }
    return InstanceStopped.model_validate(fields | changes)
