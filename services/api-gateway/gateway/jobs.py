"""One-off work of an app: what was asked for, what it has said so far, how it ended.

Invariant: what is told is the scheduler's word, the lines are those of the node it named, an end is an end. A
job is asked for in the transaction that wants it, and again until somebody has answered. The routes of
commands are in `run`, those of schedules in `cron`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from contracts.errors import NotFound
from contracts.events import JobBlocked, JobCancelled, JobEnded, JobPlaced, JobRequested
from contracts.ids import new_id
from contracts.jobs import OUTPUT_LINES, Job, JobKind, JobLine
from contracts.jobs_api import JobList, JobLogPage, JobView
from contracts.reports import JobOutput
from contracts.workload import WorkloadSpec
from fastapi import APIRouter, Query, Response
from runtime.sparing import sparing
from runtime.store import PLATFORM, Store, Tx, scoped
from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert

from gateway import pages, sizes
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.tables import JobLineRow, JobRow, WorkloadRow

router = APIRouter(prefix="/api/paas", tags=["jobs"])

OPEN = ("queued", "running")
PAGE = 1000
# What is not begun by then would come as a surprise.
START_SECONDS = 300.0
_SAY_AGAIN = timedelta(seconds=60)
_KEPT = timedelta(days=90)
_BATCH = 100

_VIEW = """json_build_object(
    'id', j.id, 'app', j.workload, 'kind', j.kind, 'command', j.command, 'status', j.status,
    'reason', j.reason, 'deployment', j.deployment,
    'schedule', (select c.name from cron c where c.id = j.cron), 'exit_code', j.exit_code,
    'seconds', j.seconds, 'created_at', j.created_at, 'started_at', j.started_at,
    'finished_at', j.finished_at
)"""
_MINE = (
    "from job j join workload w on w.id = j.workload and w.state <> 'deleted' "
    "where j.organization = scope.organization"
)
LIST = pages.page("jobs", _VIEW, f"{_MINE} and w.id = %s and {{after}}", "j.id")
LIST_OF_CRON = pages.page("jobs", _VIEW, f"{_MINE} and w.id = %s and j.cron = %s and {{after}}", "j.id")
_ONE = pages.single(_VIEW, f"{_MINE} and j.id = %s")
_LINES = scoped(
    "select l.sequence, l.at, l.stream, l.text from job_line l "
    "where l.organization = scope.organization and l.job = %s and l.sequence > %s "
    "order by l.sequence limit %s"
)
_STANDING = scoped(
    "select j.finished_at is not null from job j "
    "where j.organization = scope.organization and j.id = %s limit 1"
)

# Only the node the job is on may speak of it.
_HEARD = """
insert into job_line (job, organization, sequence, at, stream, text)
select j.id, j.organization, l.sequence, l.at, l.stream, l.text
from unnest(%s::text[], %s::text[], %s::int[], %s::timestamptz[], %s::text[], %s::text[])
    as l(job, node, sequence, at, stream, text)
join job j on j.id = l.job and j.node = l.node and j.finished_at is null
order by 1, 3 on conflict do nothing
"""

_GAPS = """
insert into job_line (job, organization, sequence, at, stream, text)
select %s, %s, n, %s, 'platform', '(this line was lost on its way)' from generate_series(1, %s) as n
on conflict do nothing
"""

_RELEASE_PHASE = scoped(
    "select d.build_lines, j.id, j.finished_at is not null from deployment d "
    "join job j on j.deployment = d.id where d.organization = scope.organization and d.id = %s limit 1"
)

After = Annotated[int, Query(ge=0, lt=2**31)]


# --- routes ----------------------------------------------------------------------------------------------


@router.get("/apps/{app}/jobs", response_model=JobList)
async def list_jobs(app: str, caller: Member, after: str | None = None) -> Response:
    """Commands, schedules and release phases of an app, the newest first."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        await _known(tx, app)
    return await pages.listed(caller.desk.store, LIST, caller.organization, app, after=after)


@router.get("/jobs/{job}", response_model=JobView)
async def show_job(job: str, caller: Member) -> Response:
    return await shown(caller.desk.store, caller.organization, job)


@router.get("/jobs/{job}/log")
async def show_job_log(job: str, caller: Member, after: After = 0) -> JobLogPage:
    store, organization = caller.desk.store, caller.organization
    # The end first: once it is there every line is stored.
    rows = await store.read(_STANDING, (organization, job))
    if not rows:
        raise no_such_job(job)
    lines = await lines_after(store, organization, job, after)
    last = lines[-1].sequence if lines else after
    return JobLogPage(lines=lines, finished=rows[0][0] and len(lines) < PAGE, next=last)


@router.post("/jobs/{job}/cancel", response_model=JobView, status_code=202)
async def cancel_job(job: str, caller: Member) -> Response:
    """It is asked to stop, and killed when it does not; one that has ended stays as it is."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        row = await tx.get(JobRow, job, lock=True)
        if row is None:
            raise no_such_job(job)
        cancel(tx, row)
    return await shown(caller.desk.store, caller.organization, job, status=202)


@dataclass(frozen=True, slots=True)
class ReleasePhase:
    build_lines: int
    job: str
    ended: bool


async def release_phase(store: Store, organization: str, deployment: str) -> ReleasePhase | None:
    rows = await store.read(_RELEASE_PHASE, (organization, deployment))
    return ReleasePhase(*rows[0]) if rows else None


async def _known(tx: Tx, app: str) -> None:
    row = await tx.get(WorkloadRow, app)
    if row is None or row.state == "deleted":
        raise NotFound("there is no such app; GET /api/paas/apps lists yours", app=app)


async def shown(store: Store, organization: str, job: str, status: int = 200) -> Response:
    found = await pages.rendered(store, _ONE, organization, job, status=status)
    if found is None:
        raise no_such_job(job)
    return found


async def lines_after(store: Store, organization: str, job: str, after: int) -> tuple[JobLine, ...]:
    """As far as there is no gap."""
    lines: list[JobLine] = []
    for sequence, at, stream, text in await store.read(_LINES, (organization, job, after, PAGE)):
        if sequence != after + len(lines) + 1:
            break
        lines.append(JobLine(sequence=sequence, at=at, stream=stream, text=text))
    return tuple(lines)


def no_such_job(job: str) -> NotFound:
    return NotFound("there is no such job; GET /api/paas/apps/{app}/jobs lists an app's", job=job)


# --- what is wanted --------------------------------------------------------------------------------------


def ask(
    tx: Tx,
    row: WorkloadRow,
    spec: WorkloadSpec,
    kind: JobKind,
    *,
    command: str,
    timeout_seconds: float,
    now: datetime,
    deployment: str | None = None,
    cron: str | None = None,
    attached: bool = False,
    skipped: str | None = None,
) -> JobRow:
    """`skipped`: why it is only noted and nobody is asked."""
    sizes.require_sendable(spec)
    job = Job(
        id=new_id("job"),
        kind=kind,
        spec=spec,
        command=command,
        timeout_seconds=timeout_seconds,
        start_before=now + timedelta(seconds=START_SECONDS),
        attached=attached,
    )
    asked = JobRow(
        id=job.id,
        organization=row.organization,
        workload=row.id,
        kind=kind,
        deployment=deployment,
        cron=cron,
        body=job.model_dump(mode="json") if skipped is None else {},
        command=command,
        attached=attached,
        status="queued" if skipped is None else "not_started",
        reason=skipped,
        finished_at=None if skipped is None else now,
    )
    tx.add(asked)
    if skipped is None:
        tx.publish(JobRequested(job=job))
    return asked


def cancel(tx: Tx, row: JobRow) -> None:
    if row.status in OPEN:
        tx.publish(JobCancelled(job=row.id, workload=row.workload, organization=row.organization))


async def cancel_all(tx: Tx, workload: str, *kinds: JobKind) -> None:
    """Those of an app that are under way."""
    found = await tx.scalars(
        select(JobRow).where(JobRow.workload == workload, JobRow.status.in_(OPEN), JobRow.kind.in_(kinds))
    )
    for row in found:
        cancel(tx, row)


async def open_of(tx: Tx, workload: str, *kinds: JobKind) -> int:
    counted = await tx.execute(
        select(func.count()).where(
            JobRow.workload == workload, JobRow.status.in_(OPEN), JobRow.kind.in_(kinds)
        )
    )
    return int(counted.scalar_one())


# --- what is said of it ----------------------------------------------------------------------------------


async def blocked(event: JobBlocked, words: str, tx: Tx) -> JobRow | None:
    """The row, where it still waits."""
    row = await tx.get(JobRow, event.job, lock=True)
    if row is None or row.status != "queued":
        return None
    row.reason = words
    return row


async def placed(event: JobPlaced, tx: Tx) -> JobRow | None:
    """The row, where it has waited so far."""
    row = await tx.get(JobRow, event.job, lock=True)
    if row is None or row.status != "queued":
        return None
    row.status, row.node, row.started_at, row.reason = "running", event.placed_on, event.at, None
    return row


async def end(event: JobEnded, tx: Tx) -> JobRow | None:
    """The row when this is its end, and None when that was told before."""
    row = await tx.get(JobRow, event.job, lock=True)
    if row is None or row.status not in OPEN:
        return None
    row.status, row.reason, row.exit_code = event.outcome, event.words, event.exit_code
    row.seconds, row.finished_at, row.body = event.seconds, event.at, {}
    await _keep_lines(tx, row, event)
    return row


async def _keep_lines(tx: Tx, row: JobRow, event: JobEnded) -> None:
    """What came live is completed by the tail, so that the lines have no gap; what is not kept is counted."""
    lines = [line for line in event.tail if line.sequence <= OUTPUT_LINES]
    beyond = [line for line in event.tail if line.sequence > OUTPUT_LINES]
    missing = event.lines - OUTPUT_LINES - len(beyond)
    place = OUTPUT_LINES
    if missing > 0:
        place += 1
        words = f"({missing} lines are not kept)"
        lines.append(JobLine(sequence=place, at=event.at, stream="platform", text=words))
    for number, line in enumerate(beyond, place + 1):
        lines.append(line.model_copy(update={"sequence": number}))
    if lines:
        values = [{"job": row.id, "organization": row.organization, **line.model_dump()} for line in lines]
        await tx.execute(insert(JobLineRow).values(values).on_conflict_do_nothing())
    connection = await tx.connection()
    kept = min(event.lines, OUTPUT_LINES)
    await connection.execute(_GAPS, (row.id, row.organization, event.at, kept))


async def heard(desk: Desk, reports: Sequence[JobOutput]) -> None:
    lines = [(r.job, r.node, li.sequence, li.at, li.stream, li.text) for r in reports for li in r.lines]
    if lines:
        async with desk.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            await connection.execute(_HEARD, [list(column) for column in zip(*lines, strict=True)])


# --- what no message will finish -------------------------------------------------------------------------


async def sweep(desk: Desk) -> None:
    """Whoever has not answered is asked again; to who has heard it changes nothing."""
    async with desk.store.transaction(PLATFORM) as tx:
        late = await tx.scalars(
            select(JobRow)
            .where(JobRow.status.in_(OPEN), JobRow.told_at < desk.clock.now() - _SAY_AGAIN)
            .order_by(JobRow.told_at)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        for row in late:
            with sparing("a job was not asked for again", job=row.id):
                row.told_at = desk.clock.now()
                tx.publish(JobRequested(job=Job.model_validate(row.body)))


async def forget(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(delete(JobRow).where(JobRow.finished_at < desk.clock.now() - _KEPT))
