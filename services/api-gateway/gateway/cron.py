"""Schedules: commands an app runs at certain times, in UTC, each run a job with its own history.

Invariant: a moment that was missed, however many there were, is made up for once; without `overlap` there is
never more than one run of a schedule, and the one that was left out says so. A stopped app's schedules rest.
"""

from datetime import datetime

from contracts.errors import Conflict, InvalidInput, NotFound, QuotaExceeded
from contracts.ids import new_id
from contracts.jobs_api import ChangeCron, CreateCron, CronList, CronView, JobList, JobView
from cronsim import CronSim, CronSimError
from fastapi import APIRouter, Response
from runtime.sparing import sparing
from runtime.store import PLATFORM, Tx
from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError

from gateway import funds, jobs, pages, run, workloads
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.tables import CronRow, JobRow, WorkloadRow, violated

router = APIRouter(prefix="/api/paas/apps/{app}/cron", tags=["jobs"])

MOST = 50
_FIELDS = 5
_BATCH = 100
_DUE = "select id, workload from cron where active and next_at <= %s order by next_at limit %s"


def next_after(schedule: str, moment: datetime) -> datetime:
    """The first time it is due behind a moment."""
    if len(schedule.split()) != _FIELDS:
        raise InvalidInput(
            "a schedule has five fields: minute, hour, day of the month, month, day of the week; "
            "such as `*/15 * * * *` or `0 3 * * 1`",
            schedule=schedule,
        )
    try:
        return next(CronSim(schedule, moment))
    except CronSimError as error:
        raise InvalidInput(f"the schedule cannot be read: {error}", schedule=schedule) from error
    except StopIteration as error:
        raise InvalidInput("the schedule is never due; there is no such day", schedule=schedule) from error


# --- routes ----------------------------------------------------------------------------------------------


@router.get("")
async def list_crons(app: str, caller: Member) -> CronList:
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.known(tx, app)
        rows = await tx.scalars(select(CronRow).where(CronRow.workload == app).order_by(CronRow.name))
        return CronList(crons=tuple([await _view(tx, row) for row in rows]))


@router.post("", status_code=201)
async def create_cron(app: str, new: CreateCron, caller: Member) -> CronView:
    due = next_after(new.schedule, caller.desk.clock.now())
    try:
        async with caller.desk.store.transaction(caller.organization) as tx:
            row = await workloads.locked(tx, app)
            count = await tx.execute(select(func.count()).where(CronRow.workload == row.id))
            if count.scalar_one() >= MOST:
                raise QuotaExceeded(f"an app has at most {MOST} schedules; delete one first", most=MOST)
            cron = CronRow(
                id=new_id("crn"),
                organization=row.organization,
                workload=row.id,
                next_at=due,
                active=True,
                **new.model_dump(),
            )
            tx.add(cron)
            await tx.flush()
            await tx.session.refresh(cron)
            return await _view(tx, cron)
    except IntegrityError as error:
        if violated(error) != "cron_workload_name_key":
            raise
        raise Conflict("the app has a schedule of this name; change it with PATCH", name=new.name) from error


@router.patch("/{cron}")
async def change_cron(app: str, cron: str, change: ChangeCron, caller: Member) -> CronView:
    given = change.model_dump(exclude_none=True)
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await _locked(tx, app, cron)
        for field, value in given.items():
            setattr(row, field, value)
        if given.keys() & {"schedule", "active"}:
            # From now on: what was due while it rested is not made up for.
            row.next_at = next_after(row.schedule, caller.desk.clock.now())
        return await _view(tx, row)


@router.delete("/{cron}", status_code=204, response_class=Response)
async def delete_cron(app: str, cron: str, caller: Member) -> None:
    """A run that is under way goes on; the history stays with the app's jobs."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await _locked(tx, app, cron)
        await tx.execute(delete(CronRow).where(CronRow.id == row.id))


@router.get("/{cron}/jobs", response_model=JobList)
async def list_runs(app: str, cron: str, caller: Member, after: str | None = None) -> Response:
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await _locked(tx, app, cron)
        found = row.id
    return await pages.listed(
        caller.desk.store, jobs.LIST_OF_CRON, caller.organization, app, found, after=after
    )


@router.post("/{cron}/run", status_code=202, response_model=JobView)
async def run_now(app: str, cron: str, caller: Member) -> Response:
    """Besides its schedule."""
    desk = caller.desk
    async with desk.store.transaction(caller.organization) as tx:
        row = await workloads.locked(tx, app)
        await run.require_room(desk, tx, row, "run", "cron")
        chosen = await _locked(tx, app, cron)
        begun = await _begin(desk, tx, row, chosen)
    return await jobs.shown(desk.store, caller.organization, begun.id, status=202)


async def _locked(tx: Tx, app: str, name: str) -> CronRow:
    await workloads.known(tx, app)
    found = await tx.one(
        select(CronRow).where(CronRow.workload == app, CronRow.name == name).with_for_update()
    )
    if found is None:
        raise NotFound("the app has no such schedule; GET …/cron lists them", name=name)
    return found


async def _view(tx: Tx, row: CronRow) -> CronView:
    last = await tx.one(
        select(JobRow.status).where(JobRow.cron == row.id).order_by(JobRow.id.desc()).limit(1)
    )
    return CronView.model_validate(
        {
            "name": row.name,
            "app": row.workload,
            "schedule": row.schedule,
            "command": row.command,
            "timeout_seconds": row.timeout_seconds,
            "overlap": row.overlap,
            "active": row.active,
            "next_at": row.next_at if row.active else None,
            "last": last,
            "created_at": row.created_at,
        }
    )


# --- time ------------------------------------------------------------------------------------------------


async def tick(desk: Desk) -> bool:
    """Begins what is due; True when there may be more."""
    now = desk.clock.now()
    found = await desk.store.look(_DUE, (now, _BATCH))
    begun = 0
    for cron, workload in found:
        with sparing("a schedule was not begun", cron=cron):
            await _due(desk, cron, workload, now)
            begun += 1
    # Those that failed are due still: a batch of them is no reason to look again at once.
    return begun > 0 and len(found) == _BATCH


async def _due(desk: Desk, cron: str, workload: str, now: datetime) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        row = await workloads.find(tx, workload)
        chosen = await tx.get(CronRow, cron, lock=True)
        if chosen is None or not chosen.active or chosen.next_at > now:
            return
        chosen.next_at = next_after(chosen.schedule, now)
        if row is None:
            chosen.active = False
        elif row.state == "running" and row.image is not None and await funds.of(tx, row.organization) > 0:
            await _begin(desk, tx, row, chosen)


async def _begin(desk: Desk, tx: Tx, row: WorkloadRow, cron: CronRow) -> JobRow:
    skipped: str | None = None
    most = desk.settings.jobs_per_app
    busy = await tx.scalars(
        select(JobRow.id).where(JobRow.cron == cron.id, JobRow.status.in_(jobs.OPEN)).limit(most)
    )
    if busy and not cron.overlap:
        skipped = f"left out: the run before it ({busy[0]}) has not ended yet"
    elif len(busy) == most:
        skipped = f"left out: {most} runs before it have not ended yet"
    return jobs.ask(
        tx,
        row,
        workloads.spec_of(row),
        "cron",
        command=cron.command,
        timeout_seconds=cron.timeout_seconds,
        now=desk.clock.now(),
        cron=cron.id,
        skipped=skipped,
    )
