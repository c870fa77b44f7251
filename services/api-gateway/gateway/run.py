"""A command in a new container of an app, or in one that runs: asked for here, talked to over `sessions`."""

from contracts.errors import Conflict, QuotaExceeded
from contracts.jobs import JobKind
from contracts.jobs_api import AttachedJob, Execute, JobView, RunCommand, TicketView
from contracts.queries import PlacesOf
from contracts.sessions import Open
from contracts.workload import Slot
from fastapi import APIRouter, Response
from runtime.store import Tx

from gateway import allowances, jobs, pages, tickets, wallets, workloads
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.tables import WorkloadRow
from gateway.tickets import Target

router = APIRouter(prefix="/api/paas", tags=["jobs"])


@router.post("/apps/{app}/run", status_code=202, response_model=JobView | AttachedJob)
async def run_command(app: str, wanted: RunCommand, caller: Member) -> Response:
    """A job; with `attached` a job and the ticket to its terminal."""
    desk, ticket = caller.desk, None
    async with desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        await require_room(desk, tx, row, "run")
        asked = jobs.ask(
            tx,
            row,
            workloads.spec_of(row),
            "run",
            command=wanted.command,
            timeout_seconds=wanted.timeout_seconds,
            now=desk.clock.now(),
            attached=wanted.attached,
        )
        if wanted.attached:
            opens = Open(verb="run", workload=row.id, organization=row.organization, job=asked.id)
            ticket = tickets.issue(caller, tx, row.id, "run", Target(opens=opens))
    found = await jobs.shown(desk.store, caller.organization, asked.id, status=202)
    if ticket is None:
        return found
    both = f'{{"job":{bytes(found.body).decode()},"ticket":{ticket.model_dump_json()}}}'
    return pages.json(both, 202)


@router.post("/apps/{app}/exec", status_code=201)
async def execute(app: str, wanted: Execute, caller: Member) -> TicketView:
    """The ticket to a process inside a running instance."""
    process, _, number = wanted.instance.rpartition(".")
    slot = Slot(process=process, index=int(number) - 1)
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.known(tx, app)
    places = (await caller.desk.bus.ask(PlacesOf(workload=app))).places
    found = next((p for p in places if (p.process, p.index) == (slot.process, slot.index)), None)
    if found is None:
        available = [f"{p.process}.{p.index + 1}" for p in places]
        raise Conflict(
            f"the app has no instance {slot}; it has: {', '.join(available) or 'none'}", available=available
        )
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        opens = Open(
            verb="exec",
            workload=row.id,
            organization=row.organization,
            slot=slot,
            command=wanted.command,
            terminal=wanted.terminal,
        )
        return tickets.issue(caller, tx, row.id, "exec", Target(opens=opens, node=found.node))


async def require_release(tx: Tx, row: WorkloadRow) -> None:
    if row.image is None:
        raise Conflict("the app has no release yet; deploy it first", app=row.id)
    await wallets.require_funds(tx, row.organization)


async def require_room(desk: Desk, tx: Tx, row: WorkloadRow, *kinds: JobKind) -> None:
    await require_release(tx, row)
    most = desk.settings.jobs_per_app
    if await jobs.open_of(tx, row.id, *kinds) >= most:
        raise QuotaExceeded(
            f"{most} commands of the app are under way already; wait for one, or cancel it", most=most
        )
    await allowances.spend(tx, row.organization, "command", desk.settings.commands_per_hour)
