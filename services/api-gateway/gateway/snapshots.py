"""The owner's answers: every workload's specification, and the deployments that wait for a build.

Whatever a message did not tell another service, it finds here.
"""

from collections.abc import Sequence

from contracts.queries import DeploymentsPending, PendingDeployments, Workloads, WorkloadsAfter
from runtime.store import PLATFORM
from sqlalchemy import select

from gateway import workloads
from gateway.deployments import requested
from gateway.desk import Desk
from gateway.tables import DeploymentRow, WorkloadRow

# As many as surely fit into one message, which holds a megabyte; of sealed variables half of that.
_PENDING = 200
_SEALED_BYTES = 400_000


async def workloads_after(desk: Desk, query: WorkloadsAfter) -> Workloads:
    page = select(WorkloadRow).order_by(WorkloadRow.id).limit(query.limit)
    if query.after is not None:
        page = page.where(WorkloadRow.id > query.after)
    async with desk.store.transaction(PLATFORM) as tx:
        rows = await tx.scalars(page)
    fitting = _fitting([row.runtime_variables for row in rows])
    return Workloads(
        specs=tuple(workloads.spec_of(row) for row in rows[:fitting]),
        next=rows[fitting - 1].id if fitting < len(rows) or len(rows) == query.limit else None,
    )


def _fitting(sealed: Sequence[str | None]) -> int:
    """How many of those in front fit into one message; always one, if there is one."""
    size = 0
    for number, text in enumerate(sealed):
        size += len(text or "")
        if number and size > _SEALED_BYTES:
            return number
    return len(sealed)


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
        waiting = found.all()
        large = [(both.WorkloadRow.variables, both.DeploymentRow.source.get("text")) for both in waiting]
        fitting = _fitting([(sealed or "") + (dockerfile or "") for sealed, dockerfile in large])
        return PendingDeployments(
            requests=tuple(
                [await requested(tx, both.WorkloadRow, both.DeploymentRow) for both in waiting[:fitting]]
            )
        )
