"""Route of an app's metrics: what its instances use, and what is asked of it. The scheduler knows both."""

from contracts.queries import UsageOf
from contracts.scaling_api import AppMetrics, InstanceMetrics, RequestMetrics
from contracts.workload import Limits
from fastapi import APIRouter

from gateway import workloads
from gateway.permissions import Member

router = APIRouter(prefix="/api", tags=["apps"])


@router.get("/paas/apps/{app}/metrics")
async def show_metrics(app: str, caller: Member) -> AppMetrics:
    async with caller.desk.store.transaction(caller.organization) as tx:
        limits = Limits.model_validate((await workloads.known(tx, app)).limits)
    used = await caller.desk.bus.ask(UsageOf(workload=app))
    traffic = used.traffic
    return AppMetrics(
        instances=tuple(
            InstanceMetrics(
                process=one.process,
                index=one.index,
                node=one.node,
                cpu_percent=round(100 * one.cpu_millis / limits.cpu_millis, 1),
                memory_mb=one.memory_mb,
                memory_percent=round(100 * one.memory_mb / limits.memory_mb, 1),
                at=one.at,
            )
            for one in sorted(used.instances, key=lambda one: (one.process, one.index))
        ),
        requests=RequestMetrics(
            total=traffic.requests,
            failed=traffic.failed,
            slow=traffic.slow,
            per_second=round(traffic.per_second, 2),
            mean_ms=None if traffic.mean_ms is None else round(traffic.mean_ms, 1),
        ),
    )
