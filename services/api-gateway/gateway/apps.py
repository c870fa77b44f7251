"""Routes of apps: a customer's intent, taken down in one transaction with the word of it (I1)."""

from contracts.api import AppDetail, AppList, CreateApp, OwnedAppList, Scale
from contracts.build_api import ChooseBuild
from contracts.errors import Conflict, InvalidInput, QuotaExceeded, Unavailable
from contracts.events import AppCreated
from contracts.git_address import parse
from contracts.ids import new_id
from contracts.queries import RegionInfo, RegionsWithRoom
from contracts.sources_api import ChooseKey
from contracts.workload import Process
from fastapi import APIRouter, Request, Response
from runtime.store import PLATFORM, Tx
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from gateway import (
    accounts,
    credentials,
    deployments,
    pages,
    plans,
    runtimes,
    sources,
    wallets,
    workloads,
)
from gateway.desk import Desk
from gateway.identity_tables import OrganizationRow, ProjectRow
from gateway.permissions import Administrator, Member, Speaker, for_member
from gateway.tables import PlanRow, WorkloadRow, violated

router = APIRouter(prefix="/api", tags=["apps"])

# A minute of it, since the one instance of an app that is replaced is away for a moment.
_VIEW = """
    'id', w.id, 'name', w.name, 'project', w.project, 'environment', w.environment,
    'status', w.status,
    'reason', case when w.trouble_until > now() then w.trouble
        when w.silent and w.live and w.status = 'running' and w.down_since < now() - interval '1 minute'
        then 'none of its instances answers; GET …/activity says what happened' else w.reason end,
    'url', w.url, 'region', w.region, 'plan', w.plan,
    'replicas', w.replicas,
    'hourly', json_build_object('micros', w.micros_per_hour * w.replicas, 'currency', w.currency),
    'generation', w.generation, 'deployment', w.deployment, 'created_at', w.created_at
"""
LIST = pages.page(
    "apps",
    f"json_build_object({_VIEW})",
    "from workload w where w.organization = scope.organization and w.state <> 'deleted' and {after}",
    "w.id",
)
_LIST_ALL = pages.page(
    "apps",
    f"json_build_object({_VIEW}, 'organization', w.organization)",
    "from workload w where scope.organization is not null and w.state <> 'deleted' and {after}",
    "w.id",
)
_ONE = pages.single(
    f"""json_build_object(
        {_VIEW}, 'port', w.port, 'health', w.health, 'limits', w.limits, 'processes', w.processes,
        'git', case when w.source ->> 'kind' = 'git' then w.source end, 'source', w.source,
        'deploy_key', (select c.shown ->> 'public_key' from credential c
                       where c.workload = w.id and c.purpose = 'git'),
        'latest_deployment', (select d.id from deployment d where d.workload = w.id
                              order by d.number desc limit 1),
        'build', w.build
    )""",
    "from workload w where w.organization = scope.organization and w.id = %s and w.state <> 'deleted'",
)


@router.get("/paas/apps", response_model=AppList, openapi_extra={"parameters": [pages.AFTER]})
@for_member
async def list_apps(request: Request, caller: Speaker) -> Response:
    after = request.query_params.get("after")
    return await pages.listed(caller.desk.store, LIST, caller.organization, after=after)


@router.post("/paas/apps", status_code=201, response_model=AppDetail)
async def create_app(new: CreateApp, caller: Member) -> Response:
    """One that names where it comes from is deployed at once, unless its key was made just now and cannot be
    known to the repository yet; any other by POST …/deploy."""
    desk = caller.desk
    source = await sources.chosen(caller, new)
    region = await _region(desk, new.region)
    row = WorkloadRow(
        id=new_id("app"),
        organization=caller.organization,
        name=new.name,
        environment="production",
        generation=1,
        state="running",
        region=region,
        chosen_port=new.port,
        port=new.port or workloads.DEFAULT_PORT,
        health=new.health.check().model_dump(),
        source=source.model_dump() if source else None,
        build=new.build.settings().model_dump(),
        chosen={},
        restarts=0,
        deployments=0,
        rollouts={},
        volumes=[],
        status="created",
    )
    workloads.set_processes(row, {"web": Process(replicas=new.replicas)})
    try:
        async with desk.store.transaction(caller.organization) as tx:
            plan = await plans.offered_plan(tx, new.plan)
            _require_replicas(plan, new.replicas)
            await runtimes.require(tx, plan, new.build.runtime)
            await _require_room(desk, tx, caller.organization)
            row.plan, row.limits, row.needs = plan.name, plan.limits, plan.needs
            row.copy_minutes = plan.copy_minutes
            row.micros_per_hour, row.currency = plan.micros_per_hour, plan.currency
            owner = await tx.get(OrganizationRow, caller.organization)
            assert owner is not None
            row.uid = accounts.uid_of(owner.number)
            row.project = await _default_project(tx, caller.organization)
            tx.add(row)
            tx.publish(AppCreated(spec=workloads.spec_of(row)))
            await tx.flush()
            ready = await _credentials(desk, tx, row, new)
            if source is not None and new.deploy and ready:
                await deployments.begin(desk, tx, row, source)
    except IntegrityError as error:
        if violated(error) != "workload_name_key":
            raise
        raise Conflict(
            f"the name {new.name} is taken; choose another", name=new.name, reason="name_taken"
        ) from error
    return await shown(caller, row.id, status=201)


@router.get("/paas/apps/{app}", response_model=AppDetail)
async def show_app(app: str, caller: Member) -> Response:
    return await shown(caller, app)


@router.put("/paas/apps/{app}/build", response_model=AppDetail)
async def change_build(app: str, chosen: ChooseBuild, caller: Member) -> Response:
    """How the next deployment is built and started, whole: what is absent, the recipe decides again."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        await runtimes.require(tx, await tx.get(PlanRow, row.plan), chosen.runtime)
        row.build = chosen.settings().model_dump()
    return await shown(caller, app)


@router.delete("/paas/apps/{app}", status_code=204, response_class=Response)
async def delete_app(app: str, caller: Member) -> None:
    """Its instances, hostnames and meters end; its name is free at once."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.delete(tx, await workloads.locked(tx, app))


@router.post("/paas/apps/{app}/stop", response_model=AppDetail)
async def stop_app(app: str, caller: Member) -> Response:
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.stop(tx, await workloads.locked(tx, app))
    return await shown(caller, app)


@router.post("/paas/apps/{app}/start", response_model=AppDetail)
async def start_app(app: str, caller: Member) -> Response:
    """Back to its replicas: also what resumes a suspended app, once there is credit again."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        await wallets.require_funds(tx, row.organization)
        await workloads.start(tx, row)
    return await shown(caller, app)


@router.post("/paas/apps/{app}/restart", response_model=AppDetail)
async def restart_app(app: str, caller: Member) -> Response:
    """Every instance is replaced by a new one of the same release; a stopped app is started."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        await wallets.require_funds(tx, row.organization)
        await workloads.restart(tx, row)
    return await shown(caller, app)


@router.post("/paas/apps/{app}/scale", response_model=AppDetail)
async def scale_app(app: str, scale: Scale, caller: Member) -> Response:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        processes = {name: Process.model_validate(p) for name, p in row.processes.items()}
        if scale.process not in processes:
            raise InvalidInput(
                f"the app has no process {scale.process}; it has: {', '.join(sorted(processes))}",
                available=sorted(processes),
            )
        before, replicas = row.processes, row.replicas
        processes[scale.process] = processes[scale.process].model_copy(update={"replicas": scale.replicas})
        workloads.set_processes(row, processes)
        if row.replicas == 0:
            raise InvalidInput("an app keeps at least one instance; POST …/stop stops it")
        if row.replicas > replicas:
            _require_replicas(await tx.get(PlanRow, row.plan), row.replicas)
            await wallets.require_funds(tx, row.organization)
        if row.processes != before:
            workloads.change(tx, row)
            await workloads.settle(tx, row)
    return await shown(caller, app)


@router.get("/admin/paas/apps", response_model=OwnedAppList)
async def list_all_apps(caller: Administrator, after: str | None = None) -> Response:
    return await pages.listed(caller.desk.store, _LIST_ALL, PLATFORM, after=after)


async def shown(caller: Speaker, app: str, status: int = 200) -> Response:
    found = await pages.rendered(caller.desk.store, _ONE, caller.organization, app, status=status)
    if found is None:
        raise workloads.no_such_app(app)
    return found


async def regions(desk: Desk) -> tuple[RegionInfo, ...]:
    return (await desk.bus.ask(RegionsWithRoom())).regions


async def _region(desk: Desk, chosen: str | None) -> str:
    known = await regions(desk)
    if not known:
        raise Unavailable("the platform has no node yet; ask its operator")
    if chosen is None:
        return next((region.name for region in known if region.has_room), known[0].name)
    if chosen not in [region.name for region in known]:
        available = [region.name for region in known if region.has_room]
        raise InvalidInput(
            f"there is no region {chosen}; choose one of: {', '.join(available)}",
            region=chosen,
            available=available,
        )
    return chosen


async def _credentials(desk: Desk, tx: Tx, row: WorkloadRow, new: CreateApp) -> bool:
    """False: the app has a key that nobody knows yet."""
    chosen = new.git_credential
    if chosen is None and new.git is not None and parse(new.git.url).scheme == "ssh":
        chosen = ChooseKey()
    if chosen is not None:
        await credentials.keep_git(desk, tx, row, chosen)
    if new.registry_login is not None:
        await credentials.keep_registry(desk, tx, row, new.registry_login)
    return not isinstance(chosen, ChooseKey) or chosen.private_key is not None


async def _default_project(tx: Tx, organization: str) -> str:
    found = await tx.one(
        select(ProjectRow).where(ProjectRow.organization == organization, ProjectRow.name == "default")
    )
    assert found is not None
    return found.id


async def _require_room(desk: Desk, tx: Tx, organization: str) -> None:
    most = desk.settings.apps_per_organization
    mine = (WorkloadRow.organization == organization, WorkloadRow.state != "deleted")
    if (await tx.execute(select(func.count()).select_from(WorkloadRow).where(*mine))).scalar_one() >= most:
        raise QuotaExceeded(f"an organization has at most {most} apps; delete one first", most=most)


def _require_replicas(plan: PlanRow | None, replicas: int) -> None:
    if plan is not None and replicas > plan.max_replicas:
        raise InvalidInput(
            f"the plan {plan.name} allows {plan.max_replicas} instances; choose fewer or a larger plan",
            plan=plan.name,
            max_replicas=plan.max_replicas,
        )
