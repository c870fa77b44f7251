"""The queue of builds: rows with a lease, which any number of builders share.

A build is queued once per deployment, ended once, and always ended: by its holder, by who finds that it was
begun too often, or by the app's deletion. Called by the handlers, by the healing loop and by `build.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from contracts.errors import Unavailable
from contracts.events import AppDeleted, BuildFinished, BuildStarted, DeploymentRequested
from contracts.ids import new_id
from contracts.queries import DeploymentsPending
from contracts.reports import LogLine
from contracts.workload import BuildFailed, BuildResult, BuildSucceeded
from pydantic import TypeAdapter, ValidationError
from runtime.lease import claim, release, renew
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert

from builder import build_log
from builder.build_log import LeaseLost
from builder.tables import BuildRow

log = structlog.get_logger("builder.queue")

ATTEMPTS = 3
_OPEN = ("queued", "building")
# A result whose event should have arrived by now is told once more when the gateway still waits for it.
_TOLD = timedelta(seconds=60)
_RETRY_SECONDS = (2.0, 10.0)

_RESULT: TypeAdapter[BuildResult] = TypeAdapter(BuildResult)


@dataclass(frozen=True, slots=True)
class Claimed:
    """`holder` is new with every claim: a loop that comes back from the dead holds nothing."""

    row: BuildRow
    request: DeploymentRequested
    holder: str


class Queue:
    def __init__(self, runtime: Runtime, lease_seconds: float, nudge: Callable[[], None]) -> None:
        self._runtime = runtime
        self._lease = lease_seconds
        self._nudge = nudge

    # --- what comes in -------------------------------------------------------------------------------

    async def requested(self, event: DeploymentRequested, tx: Tx) -> None:
        """Also what the healing loop calls: an event that was lost, doubled or late makes no difference."""
        await tx.execute(
            insert(BuildRow)
            .values(
                id=new_id("bld"),
                deployment=event.deployment,
                workload=event.workload,
                organization=event.organization,
                request=event.model_dump_json(),
                state="queued",
            )
            .on_conflict_do_nothing(index_elements=[BuildRow.deployment])
        )
        row = await tx.one(select(BuildRow).where(BuildRow.deployment == event.deployment))
        if row is not None and row.result is not None and row.finished_at is not None:
            if row.finished_at < self._runtime.clock.now() - _TOLD:
                tx.publish(_finished(row, _RESULT.validate_json(row.result), row.finished_at))
            return
        tx.after_commit(self._nudge)

    async def deleted(self, event: AppDeleted, tx: Tx) -> None:
        rows = await tx.scalars(
            select(BuildRow)
            .where(BuildRow.workload == event.spec.id, BuildRow.state.in_(_OPEN))
            .order_by(BuildRow.id)
            .with_for_update()
        )
        for row in rows:
            self._end(tx, row, BuildFailed(step="source", exit_code=None, message="the app was deleted"))
            row.state = "cancelled"

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
        holder = new_id("hld")
        async with self._runtime.store.transaction(PLATFORM) as tx:
            row = await claim(
                tx,
                BuildRow,
                BuildRow.state.in_(_OPEN),
                holder=holder,
                seconds=self._lease,
                order_by=BuildRow.queued_at,
            )
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

    async def keep(self, claimed: Claimed) -> None:
        """Renews the lease; returns when it is lost. A database that is away does not take it from us."""
        while True:
            await self._runtime.clock.sleep(self._lease / 4)
            try:
                if not await renew(
                    self._runtime.store, BuildRow, claimed.row.id, claimed.holder, self._lease
                ):
                    return
            except Exception as error:
                log.warning("a lease could not be renewed yet", build=claimed.row.id, error=str(error))

    async def finish(self, claimed: Claimed, result: BuildResult) -> None:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            self._end(tx, await self._held(tx, claimed), result)

    async def retry(self, claimed: Claimed) -> None:
        """Gives the build back, to be begun again after a pause."""
        async with self._runtime.store.transaction(PLATFORM) as tx:
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
        text = "Built." if isinstance(result, BuildSucceeded) else f"The build failed: {result.message}"
        step = "image" if isinstance(result, BuildSucceeded) else result.step
        line = LogLine(sequence=row.log_sequence + 1, at=now, stream="platform", step=step, text=text)
        build_log.append(tx, row, line)
        row.state = result.outcome
        row.image = result.image if isinstance(result, BuildSucceeded) else None
        row.result = result.model_dump_json()
        row.finished_at = now
        release(row)
        tx.publish(_finished(row, result, now))


def _finished(row: BuildRow, result: BuildResult, at: datetime) -> BuildFinished:
    return BuildFinished(
        id=f"finished-{row.id}",
        build=row.id,
        deployment=row.deployment,
        workload=row.workload,
        organization=row.organization,
        seconds=(at - (row.started_at or at)).total_seconds(),
        result=result,
    )
