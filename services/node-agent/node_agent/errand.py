"""One job on its way, by one life of the agent: from its container to its end, step by step on disk.

What is on disk before a container starts says so for good. Whatever the agent is killed in, the errand of its
next life goes on there; where nobody can know how it went, the job is told as lost. Called by `jobs`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import structlog
from contracts.errors import NotFound, ProviderFailed
from contracts.events import InstanceStarted, InstanceStopped, JobFinished
from contracts.jobs import JobOutcome, NodeJob
from contracts.model import Model, Moment
from contracts.reports import JobOutput
from contracts.sessions import Ended
from runtime.tasks import end

from node_agent.desired import Record as AppRecord
from node_agent.endings import words
from node_agent.engine import Blueprint, Ending, Identity, Instance, Mount, Session
from node_agent.exec import Conversation
from node_agent.mounts import Held, in_place, settled, withdrawn
from node_agent.output import Output
from node_agent.shelf import Shelf
from node_agent.site import Site

log = structlog.get_logger("node-agent.jobs")

_TELL_EVERY = 0.25
# What was lost on the way to the platform is said again, as long as it is among the newest.
_SAY_AGAIN_EVERY = 5.0
_TERMINAL_SECONDS = 60.0
_LOOK_EVERY = 0.1
_UNBEGUN = "it was cancelled before it began"
_LATE = "its node heard of it too late, and cannot know whether it had begun it before"


class Record(Model):
    told: NodeJob
    stage: Literal["accepted", "started", "ended"] = "accepted"
    started_at: Moment | None = None
    # The volumes it has; on disk before they are in its container.
    held: Held | None = None


class _End(Exception):
    """A job has come to its end."""

    def __init__(self, outcome: JobOutcome, reason: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Because:
    """What a job is stopped for, where it is not its customer who wants it."""

    outcome: JobOutcome
    words: str


@dataclass(frozen=True, slots=True)
class Signals:
    """What may come to a job from outside while it is under way."""

    cancelled: asyncio.Event
    terminal: asyncio.Future[Conversation]
    because: list[Because] = field(default_factory=list)


class Errand:
    def __init__(
        self,
        site: Site,
        shelf: Shelf[Record],
        record: Record,
        signals: Signals,
        report: Callable[[JobOutput], Awaitable[None]],
    ) -> None:
        self._site = site
        self._shelf = shelf
        self._record = record
        self._cancelled = signals.cancelled
        self._because = signals.because
        self._terminal = signals.terminal
        # An errand before this one may have begun to talk.
        talks = self._terminal.done() and not self._terminal.cancelled()
        self._conversation = self._terminal.result() if talks else None
        self._report = report
        self._job = record.told.job
        self._name = instance_of(self._job.id)
        self._slot = record.told.workload.slots[0]
        self._output = Output(site.clock.now)

    async def run(self) -> None:
        try:
            if self._record.stage == "accepted":
                if self._job.attached:
                    self._conversation = await self._somebody()
                instance = await self._created()
                if self._conversation is not None:
                    await self._talk(instance, self._conversation)
                elif instance.state == "created":
                    await self._start(instance)
                else:
                    # Begun by an agent that has lost its memory since.
                    await self._step(stage="started", started_at=instance.identity.started_at)
                    await self._meter(instance.identity)
            else:
                await self._go_on()
            await self._follow()
        except _End as end:
            try:
                await self._end(end)
            except OSError:
                if self._because:
                    # There may be no room to write it down before what it wrote has gone.
                    await self._site.engine.remove(self._name)
                raise

    # --- its begin ---------------------------------------------------------------------------------

    async def _created(self) -> Instance:
        """There is a container."""
        if self._cancelled.is_set():
            raise self._stopped(_UNBEGUN, None)
        if self._site.clock.now() >= self._job.start_before:
            raise _End("lost", _LATE)
        return await self._made()

    async def _made(self) -> Instance:
        try:
            await self._site.images.ensure(str(self._job.spec.image))
            if self._job.spec.volumes:
                return await self._created_on_volumes()
            return await self._found() or await self._site.engine.create(self._blueprint())
        except (ProviderFailed, NotFound) as error:
            raise _End("not_started", f"it could not be started: {error.message}") from error

    async def _created_on_volumes(self) -> Instance:
        """With those of its app, as soon as this node knows all that its job was placed by."""
        site, told = self._site, self._record.told.workload
        while True:
            async with site.mounts.alone(told.spec.id):
                if self._cancelled.is_set():
                    raise self._stopped(_UNBEGUN, None)
                record = site.desired.get(told.spec.id)
                if record is not None and settled(record, told):
                    mounts = await self._hold(record)
                    return await self._found() or await site.engine.create(self._blueprint(mounts))
            if site.clock.now() >= self._job.start_before:
                raise _End("not_started", "its node did not have the volumes ready for it in time")
            await site.clock.sleep(_LOOK_EVERY)

    async def _hold(self, record: AppRecord) -> tuple[Mount, ...]:
        """What it has is on disk before it has it."""
        desired = record.desired
        held = self._record.held or Held(home=self._record.told.workload.home, volumes=in_place(record))
        if (why := withdrawn(held, record)) is not None:
            raise _End("cancelled", why)
        await self._step(held=held)
        spec = desired.spec.model_copy(update={"volumes": held.volumes})
        return await self._site.mounts.attach(desired.model_copy(update={"spec": spec}))

    async def _start(self, instance: Instance) -> None:
        now = self._site.clock.now()
        # From here on it may have run: a crash right behind this line is told by the engine, or by nobody.
        await self._step(stage="started", started_at=now)
        await self._meter(instance.identity)
        await self._run()

    async def _run(self) -> None:
        try:
            await self._site.engine.start(self._name)
        except (ProviderFailed, NotFound) as error:
            raise _End("failed", f"it could not be started: {error.message}", 126) from error

    async def _go_on(self) -> None:
        """The agent was away."""
        found = await self._found()
        if found is None:
            if self._because:
                raise self._stopped(_UNBEGUN, None)
            raise _End("lost", "its container is gone, and nobody knows how it ended")
        await self._meter(found.identity)
        if self._job.attached:
            await self._site.engine.stop(self._name, 0)
            lost = "could not follow it" if self._conversation else "was started again"
            raise _End("cancelled", f"its terminal was closed: the node's agent {lost}")
        if found.state == "created":
            if self._record.held is not None:
                # The machine may have been started anew, and then nothing is mounted.
                await self._made()
            await self._run()

    async def _found(self) -> Instance | None:
        jobs = await self._site.engine.jobs()
        return next((found for found in jobs if found.identity.instance == self._name), None)

    def _blueprint(self, mounts: tuple[Mount, ...] = ()) -> Blueprint:
        spec, now = self._job.spec, self._site.clock.now()
        return Blueprint(
            identity=Identity.of(spec, self._slot, self._name, now, self._job.id),
            image=str(spec.image),
            command=self._job.command,
            uid=spec.uid,
            limits=spec.limits,
            environment={
                **({"TERM": "xterm-256color"} if self._job.attached else {}),
                **self._site.environment.of(self._record.told.workload, self._slot),
            },
            terminal=self._job.attached,
            runtime=spec.needs.runtime,
            mounts=mounts,
        )

    # --- somebody talks to it ----------------------------------------------------------------------

    async def _somebody(self) -> Conversation:
        if self._conversation is not None:
            return self._conversation
        cancelling = asyncio.create_task(self._cancelled.wait(), name=f"job {self._job.id} cancelling")
        try:
            until = (self._job.start_before - self._site.clock.now()).total_seconds()
            watched: set[asyncio.Future[Any]] = {self._terminal, cancelling}
            await asyncio.wait(
                watched,
                timeout=min(_TERMINAL_SECONDS, max(0.0, until)),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            cancelling.cancel()
        if self._terminal.done() and not self._terminal.cancelled():
            return self._terminal.result()
        if self._cancelled.is_set():
            raise self._stopped(_UNBEGUN, None)
        self._terminal.cancel()
        raise _End("not_started", "nobody opened its terminal")

    async def _talk(self, instance: Instance, conversation: Conversation) -> None:
        """Raises its end."""
        session = await self._site.engine.attach(self._name)
        stopping = asyncio.create_task(self._hang_up(conversation), name=f"job {self._job.id} limit")
        try:
            await self._start(instance)
            heard = await conversation.carry(session)
        finally:
            stopping.cancel()
            await session.close()
        if not heard:
            await self._site.engine.stop(self._name, self._job.spec.grace_seconds)
        ending = await self._site.engine.ending(self._name)
        if self._cancelled.is_set() or not heard:
            code = None if ending is None else ending.exit_code
            if self._remaining() <= 0:
                raise _End("timed_out", "it ran for too long", code)
            raise self._stopped(conversation.left, code)
        raise self._ended_by_itself(ending)

    async def _hang_up(self, conversation: Conversation) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._job.timeout_seconds):
                await self._cancelled.wait()
        conversation.gone.set()

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
                    raise self._stopped("it was cancelled", await self._exit_code())
                limit = f"it ran for longer than {self._job.timeout_seconds:g} s"
                raise _End("timed_out", limit, await self._exit_code())
            await reading
            self._output.end()
        finally:
            await end((reading, telling, cancelling))
            await session.close()
        raise self._ended_by_itself(await self._site.engine.ending(self._name))

    def _ended_by_itself(self, ending: Ending | None) -> _End:
        if ending is None:
            raise ProviderFailed("the engine ended its output before it ended")
        if ending.exit_code == 0:
            return _End("succeeded", None, 0)
        memory = self._job.spec.limits.memory_mb
        why = words(ending.exit_code, out_of_memory=ending.out_of_memory, memory_mb=memory)
        return _End("failed", why, ending.exit_code)

    def _stopped(self, why: str, exit_code: int | None) -> _End:
        because = self._because[0] if self._because else Because("cancelled", why)
        return _End(because.outcome, because.words, exit_code)

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
        if self._conversation is not None:
            await self._conversation.end(Ended(exit_code=end.exit_code, words=end.reason))
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


def instance_of(job: str) -> str:
    return f"ins_{job.partition('_')[2]}"
