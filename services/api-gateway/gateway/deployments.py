"""Routes of deployments: ask for one, look at what became of it."""

import orjson
from contracts.api import Deploy, DeploymentList, DeploymentStatus, DeploymentView
from contracts.errors import NotFound
from contracts.events import DeploymentRequested
from contracts.ids import new_id
from contracts.workload import BuildSettings, Limits
from fastapi import APIRouter, Response
from runtime.store import Store, Tx

from gateway import allowances, builds, pages, runtimes, sources, wallets, workloads
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.sources import AnySource
from gateway.tables import DeploymentRow, PlanRow, WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["deployments"])

_VIEW = """json_build_object(
    'id', d.id, 'app', d.workload, 'number', d.number, 'status', d.status, 'reason', d.reason,
    'source', d.source, 'recipe', d.recipe, 'image', d.image, 'size_bytes', d.size_bytes,
    'commit', d.commit, 'commit_author', d.commit_author, 'commit_message', d.commit_message,
    'exit_code', d.exit_code, 'failed_step', d.failed_step, 'seconds', d.seconds,
    'notes', d.notes, 'log_tail', d.log_tail, 'created_at', d.created_at, 'finished_at', d.finished_at,
    'rollback_of', d.rollback_of, 'position', null
)"""
_MINE = (
    "from deployment d join workload w on w.id = d.workload and w.state <> 'deleted' "
    "where d.organization = scope.organization"
)
_LIST = pages.page("deployments", _VIEW, f"{_MINE} and w.id = %s and {{after}}", "d.number")
_ONE = pages.single(_VIEW, f"{_MINE} and d.id = %s")
_ONE_OF_APP = pages.single(_VIEW, f"{_MINE} and d.id = %s and w.id = %s")
_BUILT_AS = pages.single("to_json(coalesce(d.rollback_of, d.id))", f"{_MINE} and d.id = %s")
_STATUS = pages.single("json_build_object('status', d.status, 'reason', d.reason)", f"{_MINE} and d.id = %s")


@router.post("/apps/{app}/deploy", status_code=202, response_model=DeploymentView)
async def deploy(app: str, caller: Member, chosen: Deploy | None = None) -> Response:
    """Builds the chosen source and brings it to life; one that still waits gives way to the new one."""
    chosen = chosen or Deploy()
    wanted = await sources.chosen(caller, chosen, chosen.source)
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        deployment = await begin(caller.desk, tx, row, wanted or await sources.of(tx, row, chosen.source))
    return await begun(caller, deployment)


async def begun(caller: Member, deployment: DeploymentRow) -> Response:
    found = await pages.rendered(caller.desk.store, _ONE, caller.organization, deployment.id, status=202)
    assert found is not None, "it was committed a moment ago"
    return found


async def begin(desk: Desk, tx: Tx, row: WorkloadRow, source: AnySource) -> DeploymentRow:
    await wallets.require_funds(tx, row.organization)
    limits = desk.settings
    await allowances.spend(tx, row.organization, "deployment", limits.deploys_per_hour)
    await allowances.spend(tx, row.organization, "build", limits.builds_per_hour)
    await sources.require_allowed(tx, row, source)
    await runtimes.require(tx, await tx.get(PlanRow, row.plan), row.build.get("runtime"))
    row.deployments += 1
    # A deployment is the wish to run: what was suspended is no longer, once this one is built.
    row.suspended = False
    deployment = DeploymentRow(
        id=new_id("dep"),
        organization=row.organization,
        workload=row.id,
        number=row.deployments,
        status="queued",
        source=source.model_dump(),
        build=row.build,
    )
    tx.add(deployment)
    await workloads.end_deployments(
        tx,
        row,
        "superseded",
        "a newer deployment was asked for",
        among=("queued",),
        before=deployment.number,
    )
    request = await requested(tx, row, deployment)
    tx.publish(request.model_copy(update={"trace": tx.trace}))
    await workloads.settle(tx, row)
    return deployment


@router.get("/apps/{app}/deployments", response_model=DeploymentList)
async def list_deployments(app: str, caller: Member, after: str | None = None) -> Response:
    store = caller.desk.store
    async with store.transaction(caller.organization) as tx:
        row = await tx.get(WorkloadRow, app)
        if row is None or row.state == "deleted":
            raise workloads.no_such_app(app)
    return await pages.listed(store, _LIST, caller.organization, app, after=pages.number(after))


@router.get("/deployments/{deployment}", response_model=DeploymentView)
async def show_deployment(deployment: str, caller: Member) -> Response:
    found = await pages.rendered(caller.desk.store, _ONE, caller.organization, deployment)
    if found is None:
        raise no_such_deployment(deployment)
    return await builds.placed(caller.desk, found)


@router.get("/apps/{app}/deployments/{deployment}", response_model=DeploymentView)
async def show_deployment_of_app(app: str, deployment: str, caller: Member) -> Response:
    found = await pages.rendered(caller.desk.store, _ONE_OF_APP, caller.organization, deployment, app)
    if found is None:
        raise no_such_deployment(deployment)
    return await builds.placed(caller.desk, found)


@router.post("/apps/{app}/deployments/{deployment}/cancel", response_model=DeploymentView)
async def cancel_deployment(app: str, deployment: str, caller: Member) -> Response:
    """Before its image is there: a build that waits is not begun, one under way is stopped."""
    if not await builds.cancel(caller.desk, caller.organization, app, deployment):
        raise no_such_deployment(deployment)
    return await show_deployment_of_app(app, deployment, caller)


async def standing(store: Store, organization: str, deployment: str) -> tuple[DeploymentStatus, str]:
    """Its status; and status and reason as JSON text."""
    rows = await store.read(_STATUS, (organization, deployment))
    if not rows:
        raise no_such_deployment(deployment)
    text = rows[0][0]
    return orjson.loads(text)["status"], text


async def built_as(store: Store, organization: str, deployment: str) -> str:
    """The deployment whose build it is: another one, for one that brought that back."""
    rows = await store.read(_BUILT_AS, (organization, deployment))
    if not rows:
        raise no_such_deployment(deployment)
    return str(orjson.loads(rows[0][0]))


def no_such_deployment(deployment: str) -> NotFound:
    return NotFound(
        "there is no such deployment; GET /api/paas/apps/{app}/deployments lists an app's",
        deployment=deployment,
    )


async def requested(tx: Tx, row: WorkloadRow, deployment: DeploymentRow) -> DeploymentRequested:
    """Whole, so that it can be said again at any time."""
    plan = await tx.get(PlanRow, row.plan)
    return DeploymentRequested(
        deployment=deployment.id,
        number=deployment.number,
        workload=row.id,
        organization=row.organization,
        app_name=row.name,
        source=sources.read(deployment.source),
        build=BuildSettings.model_validate(deployment.build),
        runtimes=await runtimes.presets_for(tx, plan),
        limits=Limits.model_validate(row.limits),
        uid=row.uid,
        environment=row.environment,
        cache=row.cache if await builds.cache_is_on(tx) else None,
        variables=row.variables,
    )
