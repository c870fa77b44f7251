"""Routes of builds: where one stands in the queue, the end of one nobody wants, the cache it may use.

The queue is the builder's; what is asked of it here is an answer of the moment and kept nowhere.
"""

import orjson
from contracts.api import BuildCache, QueuedBuild, QueuedBuildList
from contracts.build_queries import BuildsOpen
from contracts.errors import Conflict, Unavailable
from fastapi import APIRouter, Response
from runtime.store import PLATFORM, Tx
from sqlalchemy.dialects.postgresql import insert

from gateway import pages, status, workloads
from gateway.desk import Desk
from gateway.permissions import Administrator, Member
from gateway.tables import DeploymentRow, SwitchRow

router = APIRouter(prefix="/api", tags=["builds"])

_CACHE = "build_cache"
_QUEUED = b'"queued"'


@router.get("/admin/builds")
async def list_open_builds(caller: Administrator, after: str | None = None) -> QueuedBuildList:
    """Every organization's: those under way, then those that wait, in the order in which they are begun."""
    offset = pages.number(after) or 0
    found = await caller.desk.bus.ask(BuildsOpen(offset=offset, limit=pages.SIZE + 1))
    return QueuedBuildList(
        builds=tuple(
            QueuedBuild.model_validate(build.model_dump() | {"app": build.workload})
            for build in found.builds[: pages.SIZE]
        ),
        running=found.running,
        waiting=found.waiting,
        next=str(offset + pages.SIZE) if len(found.builds) > pages.SIZE else None,
    )


@router.get("/admin/builds/cache")
async def show_cache(caller: Administrator) -> BuildCache:
    async with caller.desk.store.transaction(PLATFORM) as tx:
        return BuildCache(enabled=await cache_is_on(tx))


@router.put("/admin/builds/cache")
async def switch_cache(chosen: BuildCache, caller: Administrator) -> BuildCache:
    """Off: every build of every app begins from nothing."""
    async with caller.desk.store.transaction(PLATFORM) as tx:
        await tx.execute(
            insert(SwitchRow)
            .values(name=_CACHE, active=chosen.enabled)
            .on_conflict_do_update(index_elements=[SwitchRow.name], set_={"active": chosen.enabled})
        )
    return chosen


@router.delete("/paas/apps/{app}/cache", status_code=204, response_class=Response)
async def clear_cache(app: str, caller: Member) -> None:
    """The app's next build begins from nothing."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        row.cache += 1


async def cancel(desk: Desk, organization: str, app: str, deployment: str) -> bool:
    """False: the app has no such deployment."""
    async with desk.store.transaction(organization) as tx:
        row = await workloads.locked(tx, app)
        found = await tx.get(DeploymentRow, deployment, lock=True)
        if found is None or found.workload != row.id:
            return False
        if found.status not in status.WAITING:
            raise Conflict(
                f"the deployment is {found.status} and can no longer be cancelled", status=found.status
            )
        await workloads.end_deployments(tx, row, "cancelled", "cancelled on request", only=found.id)
        await workloads.settle(tx, row)
    return True


async def placed(desk: Desk, shown: Response) -> Response:
    """The view of a deployment, with its place in the queue while it waits there."""
    if _QUEUED not in shown.body:
        return shown
    view = orjson.loads(shown.body)
    if view["status"] != "queued":
        return shown
    try:
        found = await desk.bus.ask(BuildsOpen(deployment=view["id"]))
    except Unavailable:
        return shown
    view["position"] = next((build.position for build in found.builds), None)
    return pages.json(orjson.dumps(view).decode())


async def cache_is_on(tx: Tx) -> bool:
    switch = await tx.get(SwitchRow, _CACHE)
    return switch is None or switch.active
