"""Runs each job this node is given, at most once: what is on disk before a container starts says so for good.

A job goes from accepted to started to ended, and each step is on disk before it is taken. Whatever the agent
is killed in, its next start goes on there; where nobody can know how it went, the job is told as lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import structlog
from contracts.errors import BerthError, NotFound, ProviderFailed
from contracts.events import InstanceStarted, InstanceStopped, JobFinished
from contracts.jobs import JobOutcome, NodeJob
from contracts.model import Model, Moment
from contracts.reports import JobOutput
from pydantic import ValidationError
from runtime.bucket import Bucket

from node_agent.endings import words
from node_agent.engine import Blueprint, Identity, Instance, Session
from node_agent.output import Output
from node_agent.shelf import Shelf
from node_agent.site import Site

log = structlog.get_logger("node-agent.jobs")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0
_TELL_EVERY = 0.25
# What was lost on the way to the platform is said again, as long as it is among the newest.
_SAY_AGAIN_EVERY = 5.0
_LATE = "its node heard of it too late, and cannot know whether it had begun it before"


class Record(Model):
    told: NodeJob
    stage: Literal["accepted", "started", "ended"] = "accepted"
    started_at: Moment | None = None


class _End(Exception):
    """A job has come to its end."""

    def __init__(self, outcome: JobOutcome, reason: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.exit_code = exit_code


class Jobs:
    def __init__(self, site: Site, folder: Path, report: Callable[[JobOutput], Awaitable[None]]) -> None:
        self._site = site
        self._shelf = Shelf(folder / "jobs", Record)
        self._report = report
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}

    def open(self) -> None:
        self._shelf.open()

    def resume(self) -> None:
        for job, _ in self._shelf:
            self._begin(job)

    async def close(self) -> None:
        """The containers are left as they are."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(self, bucket: Bucket) -> None:
        async for change in bucket.watch(f"{self._site.node}.>"):
            if change is not None:
                await self._accept(change.key, change.value)

    async def _accept(self, key: str, value: bytes | None) -> None:
        job = key.partition(".")[2]
        record = self._shelf.get(job)
        if value is None:
            if record is not None and record.stage != "ended":
                self._cancel(job)
            elif job not in self._tasks:
                await self._shelf.remove(job)
            return
        try:
            told = NodeJob.model_validate_json(value)
        except ValidationError as error:
            log.error("a job cannot be read", key=key, error=str(error))
            return
        if told.node != self._site.node or told.job.id != job:
            log.error("a job is not for this node", key=key, node=told.node)
            return
        if record is None:
            await self._shelf.put(job, Record(told=told))
            self._begin(job)
        if told.cancelled:
            self._cancel(job)

    def _cancel(self, job: str) -> None:
        self._cancelled.setdefault(job, asyncio.Event()).set()

    def _begin(self, job: str) -> None:
        self._cancelled.setdefault(job, asyncio.Event())
        task = asyncio.create_task(self._carry_out(job), name=f"job {job}")
        self._tasks[job] = task

        def ended(_: object) -> None:
            self._tasks.pop(job, None)
            self._cancelled.pop(job, None)

        task.add_done_callback(ended)

    async def _carry_out(self, job: str) -> None:
        """However long the engine is away."""
        pause = _FIRST_PAUSE
        while True:
            record = self._shelf.get(job)
            if record is None:
                return
            try:
                if record.stage == "ended":
                    await self._site.engine.remove(_instance_of(job))
                    return
                await Errand(self._site, self._shelf, record, self._cancelled[job], self._report).run()
            except (BerthError, OSError) as error:
                if pause == _FIRST_PAUSE:
                    log.warning("a job cannot go on yet", job=job, error=str(error))
                await self._site.clock.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)


class Errand:
    """One job on its way, by one life of the agent."""

    def __init__(
        self,
        site: Site,
        shelf: Shelf[Record],
        record: Record,
        cancelled: asyncio.Event,
        report: Callable[[JobOutput], Awaitable[None]],
    ) -> None:
        self._site = site
        self._shelf = shelf
        self._record = record
        self._cancelled = cancelled
        self._report = report
        self._job = record.told.job
        self._name = _instance_of(self._job.id)
        self._slot = record.told.workload.slots[0]
        self._output = Output(site.clock.now)

    async def run(self) -> None:
        try:
            if self._record.stage == "accepted":
                instance = await self._created()
                if instance.state == "created":
                    await self._start(instance)
                else:
                    # Begun by an agent that has lost its memory since.
                    await self._step(stage="started", started_at=instance.identity.started_at)
                    await self._meter(instance.identity)
            else:
                await self._go_on()
            await self._follow()
        except _End as end:
            await self._end(end)

    # --- its begin ---------------------------------------------------------------------------------

    async def _created(self) -> Instance:
        """There is a container."""
        if self._cancelled.is_set():
            raise _End("cancelled", "it was cancelled before it began")
        if self._site.clock.now() >= self._job.start_before:
            raise _End("lost", _LATE)
        try:
            await self._site.images.ensure(str(self._job.spec.image))
            found = await self._found()
            return found or await self._site.engine.create(self._blueprint())
        except (ProviderFailed, NotFound) as error:
            raise _End("not_started", f"it could not be started: {error.message}") from error

    async def _start(self, instance: Instance) -> None:
        now = self._site.clock.now()
        # From here on it may have run: a crash right behind this line is told by the engine, or by nobody.
        await self._step(stage="started", started_at=now)
        await self._meter(instance.identity)
        try:
            await self._site.engine.start(self._name)
        except (ProviderFailed, NotFound) as error:
            raise _End("failed", f"it could not be started: {error.message}", 126) from error

    async def _go_on(self) -> None:
        """The agent was away."""
        found = await self._found()
        if found is None:
            raise _End("lost", "its container is gone, and nobody knows how it ended")
        await self._meter(found.identity)
        if found.state == "created":
            await self._site.engine.start(self._name)

    async def _found(self) -> Instance | None:
        jobs = await self._site.engine.jobs()
        return next((found for found in jobs if found.identity.instance == self._name), None)

    def _blueprint(self) -> Blueprint:
        spec, now = self._job.spec, self._site.clock.now()
        return Blueprint(
            identity=Identity.of(spec, self._slot, self._name, now, self._job.id),
            image=str(spec.image),
            command=self._job.command,
            uid=spec.uid,
            limits=spec.limits,
            environment=self._site.environment.of(self._record.told.workload, self._slot),
        )

    # --- its life ----------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Raises its end."""
        session = await self._site.engine.output(self._name)
        reading = asyncio.create_task(self._read(session), name=f"job {self._job.id} output")
        telling = asyncio.create_task(self._tell(), name=f"job {self._job.id} telling")
        cancelling = asyncio.create_task(self._cancelled.wait(), name=f"job {self._job.id} cancelling")
        try:
            done, _ = await asyncio.wait(
                {reading, cancelling}, timeout=self._remaining(), return_when=asyncio.FIRST_COMPLETED
            )
            if reading not in done:
                await self._site.engine.stop(self._name, self._job.spec.grace_seconds)
                await reading
                self._output.end()
                if cancelling in done:
                    raise _End("cancelled", "it was cancelled", await self._exit_code())
                limit = f"it ran for longer than {self._job.timeout_seconds:g} s"
                raise _End("timed_out", limit, await self._exit_code())
            await reading
            self._output.end()
        finally:
            for task in (reading, telling, cancelling):
                task.cancel()
            await asyncio.gather(reading, telling, cancelling, return_exceptions=True)
            await session.close()
        ending = await self._site.engine.ending(self._name)
        if ending is None:
            raise ProviderFailed("the engine ended its output before it ended")
        if ending.exit_code == 0:
            raise _End("succeeded", None, 0)
        why = words(
            ending.exit_code, out_of_memory=ending.out_of_memory, memory_mb=self._job.spec.limits.memory_mb
        )
        raise _End("failed", why, ending.exit_code)

    def _remaining(self) -> float:
        assert self._record.started_at is not None
        end = self._record.started_at + timedelta(seconds=self._job.timeout_seconds)
        return max(0.0, (end - self._site.clock.now()).total_seconds())

    async def _exit_code(self) -> int | None:
        ending = await self._site.engine.ending(self._name)
        return None if ending is None else ending.exit_code

    async def _read(self, session: Session) -> None:
        while (chunk := await session.read()) is not None:
            self._output.add(chunk.stream, chunk.data)

    async def _tell(self) -> None:
        clock, said_at = self._site.clock, self._site.clock.monotonic()
        while True:
            await clock.sleep(_TELL_EVERY)
            again = clock.monotonic() - said_at >= _SAY_AGAIN_EVERY
            for lines in [self._output.kept_tail] if again else self._output.unsaid():
                await self._report(JobOutput(node=self._site.node, job=self._job.id, lines=lines))
                said_at = clock.monotonic()

    # --- its end -----------------------------------------------------------------------------------

    async def _end(self, end: _End) -> None:
        now, job = self._site.clock.now(), self._job
        started = self._record.started_at
        if started is not None:
            await self._meter_end(started, now, end)
        # In this order a crash in between says it again, with the same id, and never not at all.
        await self._site.journal.append(
            JobFinished(
                id=f"{job.id}.finished",
                at=now,
                node=self._site.node,
                job=job.id,
                workload=job.spec.id,
                organization=job.spec.organization,
                outcome=end.outcome,
                exit_code=end.exit_code,
                words=end.reason,
                seconds=0 if started is None else max(0.0, (now - started).total_seconds()),
                tail=self._output.tail,
                lines=self._output.lines,
            )
        )
        await self._step(stage="ended")
        log.info("job ended", job=job.id, kind=job.kind, outcome=end.outcome, exit_code=end.exit_code)

    async def _step(self, **changes: object) -> None:
        self._record = self._record.model_copy(update=changes)
        await self._shelf.put(self._job.id, self._record)

    # --- its price ---------------------------------------------------------------------------------

    @property
    def _metered(self) -> bool:
        """A release phase belongs to its deployment; what a customer runs besides takes the room of an
        instance, and costs what one costs."""
        return self._job.kind != "release"

    async def _meter(self, identity: Identity) -> None:
        if self._metered:
            await self._site.journal.append(self._started(identity))

    def _started(self, identity: Identity) -> InstanceStarted:
        started = self._record.started_at
        assert started is not None
        return InstanceStarted(
            id=f"{identity.instance}.started",
            at=started,
            node=self._site.node,
            instance=identity.instance,
            workload=identity.workload,
            organization=identity.organization,
            slot=identity.slot,
            generation=identity.generation,
            deployment=identity.deployment,
            rate=identity.rate,
            started_at=started,
        )

    async def _meter_end(self, started: datetime, now: datetime, end: _End) -> None:
        if not self._metered:
            return
        identity = Identity.of(self._job.spec, self._slot, self._name, started, self._job.id)
        begun = self._started(identity)
        # Of one that vanished nobody knows when: its first moment charges nobody too much.
        until = started if end.outcome == "lost" else max(started, now)
        await self._site.journal.append(
            InstanceStopped(
                **begun.model_dump(exclude={"id", "at"}),
                id=f"{identity.instance}.stopped",
                at=now,
                stopped_at=until,
                reason="ended",
                exit_code=end.exit_code,
                words=end.reason,
            )
        )


def _instance_of(job: str) -> str:
    return f"ins_{job.partition('_')[2]}"
