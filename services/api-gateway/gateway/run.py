"""A command in a new container of an app: asked for here, carried out like every job."""

from contracts.api import JobView, RunCommand
from contracts.errors import Conflict, QuotaExceeded
from fastapi import APIRouter, Response
from runtime.store import Tx

from gateway import jobs, wallets, workloads
from gateway.permissions import Member
from gateway.tables import WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["jobs"])


@router.post("/apps/{app}/run", status_code=202, response_model=JobView)
async def run_command(app: str, wanted: RunCommand, caller: Member) -> Response:
    desk = caller.desk
    async with desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        await require_room(tx, row, desk.settings.jobs_per_app)
        asked = jobs.ask(
            tx,
            row,
            workloads.spec_of(row),
            "run",
            command=wanted.command,
            timeout_seconds=wanted.timeout_seconds,
            now=desk.clock.now(),
        )
    return await jobs.shown(desk.store, caller.organization, asked.id, status=202)


async def require_release(tx: Tx, row: WorkloadRow) -> None:
    if row.image is None:
        raise Conflict("the app has no release yet; deploy it first", app=row.id)
    await wallets.require_funds(tx, row.organization)


async def require_room(tx: Tx, row: WorkloadRow, most: int) -> None:
    await require_release(tx, row)
    if await jobs.open_of(tx, row.id, "run") >= most:
        raise QuotaExceeded(
            f"{most} commands of the app are under way already; wait for one, or cancel it", most=most
        )
