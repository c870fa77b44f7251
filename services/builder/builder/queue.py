"""The queue of builds: rows with a lease, which any number of builders share.

A build is queued once per deployment, ended once, and always ended: by its holder, by who finds that it was
begun too often, by a newer one, or because nobody waits for it any more. Whose turn it is, `turns.py` says.
Called by the handlers, by the healing loop and by `build.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from contracts.build_queries import BuildQueue, BuildsOpen, OpenBuild
from contracts.errors import Unavailable
from contracts.events import AppDeleted, BuildFinished, BuildStarted, DeploymentCancelled, DeploymentRequested
from contracts.ids import new_id
from contracts.queries import DeploymentsPending
from contracts.reports import LogLine
from contracts.workload import BuildCancelled, BuildFailed, BuildResult, BuildSucceeded
from pydantic import TypeAdapter, ValidationError
from runtime.lease import claim, release, renew
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx, scoped
from sqlalchemy import ColumnElement, Text, and_, cast, exists, func, or_, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import aliased

from builder import build_log, turns
from builder.build_log import LeaseLost
from builder.tables import BuildRow

log = structlog.get_logger("builder.queue")

ATTEMPTS = 3
_OPEN = ("queued", "building")
_IS_OPEN = BuildRow.state.in_(_OPEN)
# A result whose event should have arrived by now is told once more when the gateway still waits for it.
_TOLD = timedelta(seconds=60)
_RETRY_SECONDS = (2.0, 10.0)
# How soon a holder learns that nobody waits for his build any more.
_LOOK_SECONDS = 0.5
# One claim at a time, on all builders: whose turn it is depends on what every other is doing.
_ANY_WAITS = """
select exists (
    select from build where state in ('queued', 'building') and (lease_until is null or lease_until < now())
)
"""
_TURN = select(func.pg_advisory_xact_lock(0x6275696C64))
_MINE = scoped(
    "select 1 from build where scope.organization is not null and id = %s and lease_holder = %s limit 1"
)

_RESULT: TypeAdapter[BuildResult] = TypeAdapter(BuildResult)


@dataclass(frozen=True, slots=True)
class Claimed:
    """`holder` is new with every claim: a loop that comes back from the dead holds nothing."""

    row: BuildRow
    request: DeploymentRequested
    holder: str


class Queue:
    def __init__(
        self, runtime: Runtime, lease_seconds: float, nudge: Callable[[], None], at_once: int = 2
    ) -> None:
        """`at_once`: the most builds of one organization that run at the same time."""
        self._runtime = runtime
        self._lease = lease_seconds
        self._nudge = nudge
        self._at_once = at_once

    # --- what comes in -------------------------------------------------------------------------------

    async def requested(self, event: DeploymentRequested, tx: Tx) -> None:
        """Also what the healing loop calls: an event that was lost, doubled or late makes no difference."""
        if not await self._enter(tx, event, event.model_dump_json(), event.number, event.environment):
            row = await tx.one(select(BuildRow).where(BuildRow.deployment == event.deployment))
            if row is not None and row.result is not None and row.finished_at is not None:
                if row.finished_at < self._runtime.clock.now() - _TOLD:
                    tx.publish(_finished(row, _RESULT.validate_json(row.result), row.finished_at))
                return
        await self._supersede(tx, event.workload)
        tx.after_commit(self._nudge)

    async def cancelled(self, event: DeploymentCancelled, tx: Tx) -> None:
        """Also of a deployment we have not heard of: then its request, when it comes, finds it ended."""
        await self._enter(tx, event, "", 0, "production")
        row = await tx.one(select(BuildRow).where(BuildRow.deployment == event.deployment).with_for_update())
        if row is not None and row.state in _OPEN:
            self._end(tx, row, BuildCancelled(message=event.reason))

    async def deleted(self, event: AppDeleted, tx: Tx) -> None:
        await self._cancel(tx, and_(BuildRow.workload == event.spec.id, _IS_OPEN), "the app was deleted")

    async def _enter(
        self,
        tx: Tx,
        event: DeploymentRequested | DeploymentCancelled,
        request: str,
        number: int,
        environment: str,
    ) -> bool:
        """False when it is known already."""
        entered = await tx.execute(
            insert(BuildRow)
            .values(
                id=new_id("bld"),
                deployment=event.deployment,
                workload=event.workload,
                organization=event.organization,
                number=number,
                preview=environment != "production",
                request=request,
                state="queued",
            )
            .on_conflict_do_nothing(index_elements=[BuildRow.deployment])
            .returning(BuildRow.id)
        )
        return entered.first() is not None

    async def _supersede(self, tx: Tx, workload: str) -> None:
        newer = aliased(BuildRow)
        outdated = exists().where(newer.workload == BuildRow.workload, newer.number > BuildRow.number)
        waits = and_(BuildRow.workload == workload, BuildRow.state == "queued", outdated)
        await self._cancel(tx, waits, "a newer deployment was asked for")

    async def _cancel(self, tx: Tx, which: ColumnElement[bool], why: str) -> None:
        found = select(BuildRow).where(which).order_by(BuildRow.id).with_for_update()
        for row in await tx.scalars(found):
            self._end(tx, row, BuildCancelled(message=why))

    async def heal(self) -> None:
        """What the gateway waits for and no message told us."""
        pending = await self._runtime.bus.ask(DeploymentsPending())
        for request in pending.requests:
            try:
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    await self.requested(request, tx)
            except Unavailable:
                raise
            except Exception:
                # One that cannot be queued must not keep the others waiting.
                log.exception("a deployment could not be queued", deployment=request.deployment)

    # --- one build at a time ---------------------------------------------------------------------------

    async def claim(self) -> Claimed | None:
        if not (await self._runtime.store.look(_ANY_WAITS))[0][0]:
            return None
        holder = new_id("hld")
        async with self._runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(_TURN)
            row = await self._next(tx, holder)
            if row is None:
                return None
            try:
                request = DeploymentRequested.model_validate_json(row.request)
            except ValidationError as error:
                # Nobody will ever read it, and all that comes after it would wait.
                log.error("a build's request cannot be read", build=row.id, error=str(error))
                words = "the request cannot be read; deploy again"
                self._end(tx, row, BuildFailed(step="source", exit_code=None, message=words))
                return None
            row.state = "building"
            if row.started_at is None:
                row.started_at = self._runtime.clock.now()
                tx.publish(
                    BuildStarted(
                        id=f"started-{row.id}",
                        build=row.id,
                        deployment=row.deployment,
                        workload=row.workload,
                        organization=row.organization,
                    )
                )
            return Claimed(row, request, holder)

    async def _next(self, tx: Tx, holder: str) -> BuildRow | None:
        running, waiting = await _standing(tx)
        for one in turns.order(waiting, running, await _served(tx, waiting)):
            if running.get(one.organization, 0) >= self._at_once:
                # The order begins with whoever has the fewest.
                return None
            row = await claim(
                tx,
                BuildRow,
                BuildRow.id == one.build,
                _IS_OPEN,
                holder=holder,
                seconds=self._lease,
                order_by=BuildRow.id,
            )
            if row is None:
                continue
            # A newer one may have been queued at the very moment when this one was.
            await self._supersede(tx, row.workload)
            if row.state in _OPEN:
                return row
        return None

    async def keep(self, claimed: Claimed) -> None:
        """Renews the lease; returns when it is lost. A database that is away does not take it from us."""
        store, build, holder = self._runtime.store, claimed.row.id, claimed.holder
        clock = self._runtime.clock
        renewed = clock.monotonic()
        while True:
            await clock.sleep(min(_LOOK_SECONDS, self._lease / 4))
            try:
                if clock.monotonic() - renewed < self._lease / 4:
                    if not await store.read(_MINE, (PLATFORM, build, holder)):
                        return
                elif await renew(store, BuildRow, build, holder, self._lease):
                    renewed = clock.monotonic()
                else:
                    return
            except Exception as error:
                log.warning("a lease could not be renewed yet", build=build, error=str(error))

    async def finish(self, tx: Tx, claimed: Claimed, result: BuildResult) -> None:
        self._end(tx, await self._held(tx, claimed), result)

    async def retry(self, tx: Tx, claimed: Claimed) -> None:
        """Gives the build back, to be begun again after a pause."""
        row = await self._held(tx, claimed)
        pause = _RETRY_SECONDS[min(row.attempts, len(_RETRY_SECONDS)) - 1]
        row.lease_holder = None
        row.lease_until = self._runtime.clock.now() + timedelta(seconds=pause)

    async def give_back(self, claimed: Claimed) -> None:
        """This builder stops: the attempt counts as never made, and another may begin at once."""
        async with self._runtime.store.transaction(PLATFORM) as tx:
            row = await self._held(tx, claimed)
            release(row)
            row.attempts -= 1

    async def _held(self, tx: Tx, claimed: Claimed) -> BuildRow:
        row = await tx.get(BuildRow, claimed.row.id, lock=True)
        if row is None or row.state != "building" or row.lease_holder != claimed.holder:
            raise LeaseLost(f"{claimed.row.id} is no longer {claimed.holder}'s")
        return row

    def _end(self, tx: Tx, row: BuildRow, result: BuildResult) -> None:
        now = self._runtime.clock.now()
        step, text = _last_words(result)
        line = LogLine(sequence=row.log_sequence + 1, at=now, stream="platform", step=step, text=text)
        build_log.append(tx, row, line)
        row.state = result.outcome
        row.image = result.image if isinstance(result, BuildSucceeded) else None
        row.result = result.model_dump_json()
        row.finished_at = now
        release(row)
        tx.publish(_finished(row, result, now))

    # --- who asks --------------------------------------------------------------------------------------

    async def answer(self, question: BuildsOpen) -> BuildQueue:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            running, waiting = await _standing(tx)
            places = {
                one.build: place
                for place, one in enumerate(turns.order(waiting, running, await _served(tx, waiting)), 1)
            }
            asked = select(BuildRow).where(_IS_OPEN).order_by(BuildRow.started_at, BuildRow.id)
            if question.deployment is not None:
                asked = asked.where(BuildRow.deployment == question.deployment)
            rows = await tx.scalars(asked)
        rows.sort(key=lambda row: places.get(row.id, 0))
        page = rows[question.offset : question.offset + question.limit]
        return BuildQueue(
            builds=tuple(_shown(row, places.get(row.id)) for row in page),
            running=sum(running.values()),
            waiting=len(places),
        )


async def _standing(tx: Tx) -> tuple[dict[str, int], list[turns.Waiting]]:
    """How many run of each organization, and all that could be begun now."""
    leased = and_(BuildRow.lease_until.is_not(None), BuildRow.lease_until >= func.now())
    running = await tx.execute(
        select(BuildRow.organization, func.count().label("running"))
        .where(_IS_OPEN, leased, BuildRow.lease_holder.is_not(None))
        .group_by(BuildRow.organization)
    )
    waiting = await tx.execute(
        select(BuildRow.id, BuildRow.organization, BuildRow.preview, BuildRow.queued_at).where(
            _IS_OPEN, or_(BuildRow.lease_until.is_(None), BuildRow.lease_until < func.now())
        )
    )
    counts = {one.organization: one.running for one in running}
    return counts, [turns.Waiting(one.id, one.organization, one.preview, one.queued_at) for one in waiting]


async def _served(tx: Tx, waiting: list[turns.Waiting]) -> dict[str, datetime]:
    """When a build of theirs was last begun."""
    organizations = {one.organization for one in waiting}
    if len(organizations) < 2:
        return {}
    asked = select(func.unnest(cast(list(organizations), ARRAY(Text))).label("organization")).subquery()
    last = (
        select(func.max(BuildRow.started_at))
        .where(BuildRow.organization == asked.c.organization)
        .correlate(asked)
        .scalar_subquery()
    )
    found = await tx.execute(select(asked.c.organization, last.label("at")))
    return {one.organization: one.at for one in found if one.at is not None}


def _shown(row: BuildRow, place: int | None) -> OpenBuild:
    try:
        name = DeploymentRequested.model_validate_json(row.request).app_name
    except ValidationError:
        name = None
    return OpenBuild(
        build=row.id,
        deployment=row.deployment,
        workload=row.workload,
        organization=row.organization,
        app_name=name,
        state="queued" if row.state == "queued" else "building",
        position=place,
        attempts=row.attempts,
        queued_at=row.queued_at,
        started_at=row.started_at,
    )


def _last_words(result: BuildResult) -> tuple[str, str]:
    if isinstance(result, BuildSucceeded):
        return "image", "Built."
    if isinstance(result, BuildCancelled):
        return "build", f"The build was cancelled: {result.message}"
    return result.step, f"The build failed: {result.message}"


def _finished(row: BuildRow, result: BuildResult, at: datetime) -> BuildFinished:
    return BuildFinished(
        id=f"finished-{row.id}",
        build=row.id,
        deployment=row.deployment,
        workload=row.workload,
        organization=row.organization,
        seconds=(at - (row.started_at or at)).total_seconds(),
        result=result,
        lines=row.log_sequence,
    )
