"""The owner's answers: every workload's specification, and the deployments that wait for a build.

Whatever a message did not tell another service, it finds here.
"""

from contracts.queries import DeploymentsPending, PendingDeployments, Workloads, WorkloadsAfter
from runtime.store import PLATFORM
from sqlalchemy import select

from gateway import workloads
from gateway.deployments import requested
from gateway.desk import Desk
from gateway.tables import DeploymentRow, WorkloadRow

# As many as surely fit into one message.
_PENDING = 200


async def workloads_after(desk: Desk, query: WorkloadsAfter) -> Workloads:
    page = select(WorkloadRow).order_by(WorkloadRow.id).limit(query.limit)
    if query.after is not None:
        page = page.where(WorkloadRow.id > query.after)
    async with desk.store.transaction(PLATFORM) as tx:
        rows = await tx.scalars(page)
    return Workloads(
        specs=tuple(workloads.spec_of(row) for row in rows),
        next=rows[-1].id if len(rows) == query.limit else None,
    )


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
        return PendingDeployments(
            requests=tuple(
                [await requested(tx, both.WorkloadRow, both.DeploymentRow) for both in found.all()]
            )
        )
