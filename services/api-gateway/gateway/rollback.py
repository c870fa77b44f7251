"""Route that brings an earlier deployment of an app back: its image as it is, without a build.

A rollback is a deployment like any other, with a number of its own and the log of the build it goes back to.
Variables, domains and the number of instances stay as they are now; the release phase does not run again.
"""

from dataclasses import dataclass

from contracts.api import DeploymentView, Rollback
from contracts.build_queries import ImageLookup
from contracts.errors import Conflict, NotFound, Unavailable
from contracts.ids import new_id
from contracts.workload import ImageSource
from fastapi import APIRouter, Response
from runtime.store import Tx
from sqlalchemy import select

from gateway import allowances, deployments, images, jobs, rollouts, sources, wallets, workloads
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.tables import DeploymentRow, ReleaseRow, WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["deployments"])


@router.post("/apps/{app}/rollback", status_code=202, response_model=DeploymentView)
async def roll_back(app: str, caller: Member, chosen: Rollback | None = None) -> Response:
    """To the deployment that is named, or to the one that ran before; nothing is built."""
    desk, wanted = caller.desk, (chosen or Rollback()).deployment
    async with desk.store.transaction(caller.organization) as tx:
        row = await workloads.known(tx, app)
        release = (await _chosen(tx, row, wanted)).release
    await _require_kept(desk, release.image)
    async with desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        deployment = await _begin(desk, tx, row, await _chosen(tx, row, wanted))
    return await deployments.begun(caller, deployment)


@dataclass(frozen=True, slots=True)
class _Chosen:
    deployment: DeploymentRow
    release: ReleaseRow


async def _chosen(tx: Tx, row: WorkloadRow, wanted: str | None) -> _Chosen:
    if row.release is None:
        raise Conflict("the app has no release yet; deploy it first", app=row.id)
    found = select(DeploymentRow, ReleaseRow).join(ReleaseRow, ReleaseRow.deployment == DeploymentRow.id)
    found = found.where(DeploymentRow.workload == row.id)
    if wanted is not None:
        one = (await tx.execute(found.where(DeploymentRow.id == wanted))).one_or_none()
        if one is None:
            raise await _nothing_to_go_back_to(tx, row, wanted)
        if one.ReleaseRow.id == row.release and row.state == "running":
            raise Conflict("that deployment is what runs", deployment=wanted)
        return _Chosen(one.DeploymentRow, one.ReleaseRow)
    now = await tx.get(DeploymentRow, row.deployment)
    assert now is not None, "a release has its deployment"
    earlier = found.where(DeploymentRow.number < now.number, ReleaseRow.lived)
    one = (await tx.execute(earlier.order_by(DeploymentRow.number.desc()).limit(1))).one_or_none()
    if one is None:
        raise Conflict("there is no earlier deployment to go back to", app=row.id)
    return _Chosen(one.DeploymentRow, one.ReleaseRow)


async def _nothing_to_go_back_to(tx: Tx, row: WorkloadRow, wanted: str) -> NotFound | Conflict:
    deployment = await tx.get(DeploymentRow, wanted)
    if deployment is None or deployment.workload != row.id:
        return deployments.no_such_deployment(wanted)
    return Conflict("that deployment has no image: it was never built to its end", deployment=wanted)


async def _require_kept(desk: Desk, image: str) -> None:
    try:
        exists = (await desk.bus.ask(ImageLookup(reference=image), timeout=10)).exists
    except Unavailable:
        # Who cannot be asked has not said no; a node that does not find it leaves the app as it is.
        return
    if exists is False:
        raise Conflict(
            "the image of that deployment is not kept any more; deploy its source again", image=image
        )


async def _begin(desk: Desk, tx: Tx, row: WorkloadRow, chosen: _Chosen) -> DeploymentRow:
    await wallets.require_funds(tx, row.organization)
    await allowances.spend(tx, row.organization, "deployment", desk.settings.deploys_per_hour)
    origin = chosen.deployment
    if isinstance(sources.read(origin.source), ImageSource):
        await images.require_custom(tx)
    row.deployments += 1
    deployment = DeploymentRow(
        id=new_id("dep"),
        organization=row.organization,
        workload=row.id,
        number=row.deployments,
        status="deploying",
        source=origin.source,
        build=origin.build,
        build_lines=origin.build_lines,
        recipe=origin.recipe,
        image=origin.image,
        size_bytes=origin.size_bytes,
        commit=origin.commit,
        commit_author=origin.commit_author,
        commit_message=origin.commit_message,
        # One that went back itself leads to the one that was built.
        rollback_of=origin.rollback_of or origin.id,
    )
    release = ReleaseRow(
        id=new_id("rel"),
        organization=row.organization,
        workload=row.id,
        deployment=deployment.id,
        image=chosen.release.image,
        digest=chosen.release.digest,
        processes=chosen.release.processes,
        port=chosen.release.port,
    )
    tx.add(deployment)
    tx.add(release)
    words = "an earlier deployment was brought back"
    await workloads.end_deployments(tx, row, "superseded", words, before=deployment.number)
    await jobs.cancel_all(tx, row.id, "release")
    await rollouts.go_live(tx, row, deployment, release)
    has = ", ".join(f"{process['replicas']} of {name}" for name, process in sorted(row.processes.items()))
    deployment.notes = [f"brings back deployment {origin.number} with {has}", *deployment.notes]
    await workloads.settle(tx, row)
    return deployment
