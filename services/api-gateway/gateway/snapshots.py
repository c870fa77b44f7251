"""The owner's answers: every workload's specification, and the deployments that wait for a build.

Whatever a message did not tell another service, it finds here.
"""

from contracts.queries import DeploymentsPending, PendingDeployments, Workloads, WorkloadsAfter
from runtime.store import PLATFORM
from sqlalchemy import select

from gateway import workloads
from gateway.deployments import requested
from gateway.desk import Desk
from gateway.sizes import Page
from gateway.tables import DeploymentRow, WorkloadRow

_PENDING = 200


async def workloads_after(desk: Desk, query: WorkloadsAfter) -> Workloads:
    found = select(WorkloadRow).order_by(WorkloadRow.id).limit(query.limit)
    if query.after is not None:
        found = found.where(WorkloadRow.id > query.after)
    async with desk.store.transaction(PLATFORM) as tx:
        rows = await tx.scalars(found)
    page, specs = Page(), []
    for row in rows:
        spec = workloads.spec_of(row)
        if not page.takes(spec):
            break
        specs.append(spec)
    more = len(specs) < len(rows) or len(rows) == query.limit
    return Workloads(specs=tuple(specs), next=specs[-1].id if more else None)


async def deployments_pending(desk: Desk, _: DeploymentsPending) -> PendingDeployments:
    """The oldest first."""
    async with desk.store.transaction(PLATFORM) as tx:
        found = await tx.execute(
            select(WorkloadRow, DeploymentRow)
            .join(DeploymentRow, DeploymentRow.workload == WorkloadRow.id)
            .where(DeploymentRow.status == "queued")
            .order_by(DeploymentRow.id)
            .limit(_PENDING)
        )
        page, requests = Page(), []
        for waiting in found.all():
            request = await requested(tx, waiting.WorkloadRow, waiting.DeploymentRow)
            if not page.takes(request):
                break
            requests.append(request)
        return PendingDeployments(requests=tuple(requests))
