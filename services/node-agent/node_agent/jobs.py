"""The jobs this node is given: each is accepted once, begun at most once, and forgotten when it is over.

A job goes from accepted to started to ended, and each step is on disk before it is taken (`errand`). The key
of one that is over goes from the bucket, and then from the disk.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import structlog
from contracts.errors import BerthError
from contracts.jobs import NodeJob
from contracts.reports import JobOutput
from pydantic import ValidationError
from runtime.bucket import Bucket
from runtime.tasks import end

from node_agent.errand import Because, Errand, Record, Signals, instance_of
from node_agent.exec import Conversation
from node_agent.mounts import Held
from node_agent.overdraft import overdrawn
from node_agent.shelf import Shelf
from node_agent.site import Site

log = structlog.get_logger("node-agent.jobs")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Jobs:
    def __init__(self, site: Site, folder: Path, report: Callable[[JobOutput], Awaitable[None]]) -> None:
        self._site = site
        self._shelf = Shelf(folder / "jobs", Record)
        self._report = report
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: dict[str, asyncio.Event] = {}
        self._because: defaultdict[str, list[Because]] = defaultdict(list)
        # Jobs that wait for somebody to talk to.
        self._waiting: dict[str, asyncio.Future[Conversation]] = {}
        site.mounts.lend(self)

    def open(self) -> None:
        self._shelf.open()

    def resume(self) -> None:
        for job, _ in self._shelf:
            self._begin(job)

    async def close(self) -> None:
        """The containers are left as they are."""
        await end(self._tasks.values())

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
        self._waiting[job] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(self._carry_out(job), name=f"job {job}")
        self._tasks[job] = task

        def ended(_: object) -> None:
            self._tasks.pop(job, None)
            self._cancelled.pop(job, None)
            self._because.pop(job, None)
            self._waiting.pop(job).cancel()

        task.add_done_callback(ended)

    async def measure_disks(self) -> None:
        """One that wrote more than its plan allows is ended."""
        for job, record in self._shelf:
            if record.stage != "started" or job not in self._tasks:
                continue
            words = await overdrawn(self._site, instance_of(job), record.told.job.spec.limits.disk_mb)
            if words is not None:
                self._end(job, Because("failed", f"it {words}"))

    def holding(self, workload: str) -> dict[str, Held]:
        return {
            job: record.held
            for job, record in self._shelf
            if record.held is not None and record.told.job.spec.id == workload
        }

    def stop(self, job: str, words: str) -> None:
        if job in self._tasks:
            self._end(job, Because("cancelled", words))

    async def ended(self, jobs: Collection[str]) -> None:
        tasks = [task for job in jobs if (task := self._tasks.get(job)) is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _end(self, job: str, because: Because) -> None:
        self._because[job].append(because)
        self._cancel(job)

    async def attach(self, conversation: Conversation) -> str | None:
        """Hands it to the job it is for; why not, where it cannot."""
        job = str(conversation.opened.job)
        record, waiting = self._shelf.get(job), self._waiting.get(job)
        if record is None or waiting is None or waiting.done():
            return "the command does not wait for a terminal; it has begun, or has ended"
        spec, opened = record.told.job.spec, conversation.opened
        if (spec.id, spec.organization) != (opened.workload, opened.organization):
            return "there is no such command"
        waiting.set_result(conversation)
        return None

    async def _carry_out(self, job: str) -> None:
        """However long the engine is away, and whatever else fails: nobody besides would end it."""
        pause = _FIRST_PAUSE
        while True:
            record = self._shelf.get(job)
            if record is None:
                return
            try:
                if record.stage == "ended":
                    await self._site.engine.remove(instance_of(job))
                    if record.held is not None:
                        await self._site.mounts.let_go(record.told.job.spec.id)
                    return
                signals = Signals(self._cancelled[job], self._waiting[job], self._because[job])
                await Errand(self._site, self._shelf, record, signals, self._report).run()
            except Exception as error:
                if pause == _FIRST_PAUSE:
                    known = isinstance(error, BerthError | OSError)
                    log.warning(
                        "a job cannot go on yet",
                        job=job,
                        error=str(error),
                        exc_info=None if known else error,
                    )
                await self._site.clock.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
