"""Specifications of workloads for the tests of domains."""

from typing import Any

from contracts.ids import new_id
from contracts.money import Rate
from contracts.workload import Limits, WorkloadSpec


def spec(name: str = "shop", **fields: Any) -> WorkloadSpec:
    return WorkloadSpec.model_validate(
        {
            "id": new_id("app"),
            "name": name,
            "organization": new_id("org"),
            "project": new_id("prj"),
            "generation": 1,
            "state": "running",
            "region": "local",
            "plan": "small",
            "limits": Limits(cpu_millis=250, memory_mb=128, disk_mb=1024),
            "rate": Rate(micros_per_hour=7000, currency="USD"),
            "uid": 100_000,
        }
        | fields
    )


def later(spec: WorkloadSpec, **fields: Any) -> WorkloadSpec:
    return spec.model_copy(update={"generation": spec.generation + 1} | fields)
