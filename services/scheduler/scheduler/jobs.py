"""One-off work: gives each job room and a node, tells that node, and says once how the job ended.

Invariant: a job is given to one node for good, so that nobody begins it twice; its room is given back when it
has ended, and it always ends: by its node's word, or when no word is to be expected any more. Locks are taken
in this order: the job, its workload, the node, its projections. Called by `app` for events and as loops.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from contracts.errors import NotYet
from contracts.events import JobBlocked, JobCancelled, JobEnded, JobFinished, JobPlaced, JobRequested
from contracts.ids import new_id
from contracts.jobs import Job, NodeJob
from contracts.workload import NodeWorkload, Slot, WorkloadSpec
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb
from runtime.runtime import Runtime
from runtime.sparing import sparing
from runtime.store import PLATFORM, Tx

from scheduler.fleet import Room
from scheduler.tables import JobRow
from scheduler.ties import Tie, hold, tie_of, why_not

BATCH = 100
# A node that works says so long before; only one that is gone for good, or has lost the job, does not.
OVERDUE = timedelta(seconds=120)
KEPT = timedelta(days=7)

# Release phases of one app run one after the other: two migrations at once would ruin its data.
_WAITING = """
select j.id from job j where j.state = 'waiting' and j.id > %s and not exists (
    select from job before where before.workload = j.workload and before.kind = 'release'
        and j.kind = 'release' and before.state <> 'ended' and before.id < j.id
)
order by j.id limit %s
"""

_PLACE = """
with chosen as (
    select n.name from node n
    where n.region = %(region)s and n.status = 'online' and n.labels @> %(labels)s
        and (n.name = %(bound)s::text or (
            %(bound)s::text is null and not n.disabled and not n.draining and n.trusted_at is null
            and not n.engine_away
        ))
        and coalesce(n.architecture = %(architecture)s, true)
        and (%(runtime)s::text is null or %(runtime)s::text = any(n.runtimes))
        and n.free_cpu_millis - n.reserve * n.cpu_millis >= %(least_cpu)s
        and n.free_memory_mb - n.reserve * n.memory_mb >= %(least_memory)s
        and n.free_disk_mb - n.reserve * n.disk_mb >= %(least_disk)s
    order by exists (
            select from placement p
            where p.workload = %(workload)s and p.node = n.name and p.leaving is null
        ) desc,
        n.reserved_memory_mb::float8 / greatest(n.memory_mb, 1)
            + n.reserved_cpu_millis::float8 / greatest(n.cpu_millis, 1), n.name
    limit 1 for no key update of n
)
update node n set
    reserved_cpu_millis = n.reserved_cpu_millis + %(cpu)s,
    reserved_memory_mb = n.reserved_memory_mb + %(memory)s,
    reserved_disk_mb = n.reserved_disk_mb + %(disk)s,
    free_cpu_millis = n.free_cpu_millis - %(cpu)s,
    free_memory_mb = n.free_memory_mb - %(memory)s,
    free_disk_mb = n.free_disk_mb - %(disk)s
from chosen where n.name = chosen.name returning n.name
"""

_GIVE_BACK = """
update node n set
    reserved_cpu_millis = greatest(0, n.reserved_cpu_millis - %(cpu)s),
    reserved_memory_mb = greatest(0, n.reserved_memory_mb - %(memory)s),
    reserved_disk_mb = greatest(0, n.reserved_disk_mb - %(disk)s),
    free_cpu_millis = greatest(0, n.cpu_millis - greatest(0, n.reserved_cpu_millis - %(cpu)s)),
    free_memory_mb = greatest(0, n.memory_mb - greatest(0, n.reserved_memory_mb - %(memory)s)),
    free_disk_mb = greatest(0, n.disk_mb - greatest(0, n.reserved_disk_mb - %(disk)s)),
    returned = n.returned + 1
where n.name = %(node)s
"""

_OVERDUE = """
select j.id from job j left join node n on n.name = j.node where j.state = 'placed' and (
    j.deadline < %s
    or (j.start_before < %s and (n.name is null or n.status = 'offline'))
) order by j.id limit %s
"""

_UNWRITTEN = "select id from job where not written and state = 'placed' order by id limit %s"
_KEYS = "select node, id from job where not removed and state = 'ended' and node is not null limit %s"
_REMOVED = "update job set removed = true where id = any(%s)"
_SAY_ALL_AGAIN = "update job set written = false where state = 'placed' and written"
_FORGET = "delete from job where state = 'ended' and (removed or node is null) and ended_at < %s"


class Jobs:
    def __init__(
        self,
        runtime: Runtime,
        variables: Callable[[str, WorkloadSpec], str | None],
        project: Callable[[], None],
    ) -> None:
        """`variables`: those of a specification, sealed for a node. `project`: nodes have to be told of a
        workload."""
        self._runtime = runtime
        self._variables = variables
        self._project_workloads = project
        self._nudge: Callable[[], None] = lambda: None
        self._bucket = runtime.bus.bucket("jobs")
        self._connection: int | None = None
        # What those who wait have been told; after a start they are told again.
        self._waiting: dict[str, dict[str, str]] = {}

    def on_change(self, call: Callable[[], None]) -> None:
        self._nudge = call

    # --- what is said of jobs ----------------------------------------------------------------------

    async def requested(self, event: JobRequested, tx: Tx) -> None:
        job = event.job
        known = await tx.get(JobRow, job.id, lock=True)
        if known is None:
            tx.add(
                JobRow(
                    id=job.id,
                    organization=job.spec.organization,
                    workload=job.spec.id,
                    region=job.spec.region,
                    kind=job.kind,
                    body=job.model_dump(mode="json"),
                    state="waiting",
                    start_before=job.start_before,
                    deadline=job.start_before + timedelta(seconds=job.timeout_seconds),
                )
            )
            tx.after_commit(self._nudge)
        elif known.ending is not None:
            # Whoever asks again has not heard.
            ended = JobEnded.model_validate(known.ending)
            tx.publish(ended.model_copy(update={"id": new_id("evt"), "at": event.at}))
        elif known.node is not None:
            tx.publish(_placed(known, known.node))

    async def cancelled(self, event: JobCancelled, tx: Tx) -> None:
        row = await tx.get(JobRow, event.job, lock=True)
        if row is None:
            # Nobody says it again; the request, which may be later, is said until it is heard.
            raise NotYet(f"{event.job} is cancelled, and was not heard of yet", after=5)
        if row.state == "ended":
            return
        if row.state == "waiting":
            await self._end(tx, row, outcome="cancelled", words="it was cancelled before it began")
        else:
            row.cancelled, row.written = True, False
            tx.after_commit(self._nudge)

    async def finished(self, event: JobFinished, tx: Tx) -> None:
        row = await tx.get(JobRow, event.job, lock=True)
        if row is None or row.state != "placed":
            return
        if row.node != event.node:
            self._runtime.log.warning("another node speaks of a job", job=row.id, node=event.node)
            return
        await self._end(
            tx,
            row,
            outcome=event.outcome,
            exit_code=event.exit_code,
            words=event.words,
            seconds=event.seconds,
            tail=event.tail,
            lines=event.lines,
        )

    async def lose(self, tx: Tx, rows: Sequence[JobRow]) -> None:
        """Under lock: their node is taken out."""
        for row in rows:
            await self._end(tx, row, outcome="lost", words=f"its node {row.node} was taken out")

    # --- the loop ----------------------------------------------------------------------------------

    async def work(self) -> bool:
        """True when there may be more to do."""
        more = await self._place()
        await self._reap()
        await self._project()
        return more

    async def forget(self) -> None:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            await connection.execute(_FORGET, (self._runtime.clock.now() - KEPT,))

    async def _place(self) -> bool:
        """True when one was placed: of many, their nodes are told a batch at a time. What finds no room stops
        nobody behind it, and is looked at again in its time, or as soon as another has ended."""
        after, placed = "", False
        while waiting := [row[0] for row in await self._runtime.store.look(_WAITING, (after, BATCH))]:
            for job in waiting:
                with sparing("a job could not be placed", job=job):
                    async with self._runtime.store.transaction(PLATFORM) as tx:
                        row = await tx.get(JobRow, job, lock=True)
                        if row is not None and row.state == "waiting":
                            placed |= await self._place_one(tx, row)
            after = waiting[-1]
        return placed

    async def _place_one(self, tx: Tx, row: JobRow) -> bool:
        job = Job.model_validate(row.body)
        connection = await tx.connection()
        tie = await tie_of(connection, job.spec)
        node = None if tie.waits else await _reserve(connection, row, job.spec, tie)
        if node is not None:
            row.state, row.node = "placed", node
            row.cpu_millis, row.memory_mb = tie.room.cpu_millis, tie.room.memory_mb
            row.disk_mb = tie.room.disk_mb - tie.data_mb
            if tie.tied:
                row.home, row.revision = tie.home, await hold(connection, job.spec, tie, node)
                tx.after_commit(self._project_workloads)
            self._waiting.pop(row.id, None)
            tx.publish(_placed(row, node))
            self._runtime.log.info("job placed", job=row.id, kind=row.kind, node=row.node)
            return True
        reasons = await why_not(connection, job.spec, tie)
        if self._runtime.clock.now() >= row.start_before:
            each = "; ".join(f"{node}: {why}" for node, why in reasons.items())
            words = f"no node had room for it in time: {each or 'the region has no node'}"
            await self._end(tx, row, outcome="not_started", words=words)
        elif self._waiting.get(row.id) != reasons:
            self._waiting[row.id] = reasons
            tx.publish(
                JobBlocked(job=row.id, workload=row.workload, organization=row.organization, reasons=reasons)
            )
        return False

    async def _reap(self) -> None:
        overdue = self._runtime.clock.now() - OVERDUE
        for (job,) in await self._runtime.store.look(_OVERDUE, (overdue, overdue, BATCH)):
            with sparing("a lost job could not be ended", job=job):
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    row = await tx.get(JobRow, job, lock=True)
                    if row is not None and row.state == "placed":
                        words = f"its node {row.node} has not said how it ended, and will not any more"
                        await self._end(tx, row, outcome="lost", words=words)

    async def _end(self, tx: Tx, row: JobRow, **ending: Any) -> None:
        ended = JobEnded(
            job=row.id,
            kind=row.kind,
            workload=row.workload,
            organization=row.organization,
            deployment=row.body["spec"]["deployment"],
            **ending,
        )
        row.state, row.ending = "ended", ended.model_dump(mode="json")
        self._waiting.pop(row.id, None)
        row.ended_at = self._runtime.clock.now()
        if row.node is not None:
            connection = await tx.connection()
            room = Room(row.cpu_millis, row.memory_mb, row.disk_mb)
            await connection.execute(_GIVE_BACK, {"node": row.node, **_columns(room)})
        tx.publish(ended)
        tx.after_commit(self._nudge)
        self._runtime.log.info("job ended", job=row.id, kind=row.kind, outcome=ended.outcome)

    # --- the bucket --------------------------------------------------------------------------------

    async def _project(self) -> None:
        if not self._runtime.bus.connected:
            return
        connection = self._runtime.bus.client.stats["reconnects"]
        if self._connection != connection:
            # The server may have lost its disk. A node that has a job already passes it over.
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await (await tx.connection()).execute(_SAY_ALL_AGAIN)
            self._connection = connection
        for (job,) in await self._runtime.store.look(_UNWRITTEN, (BATCH,)):
            with sparing("a node could not be told of a job", job=job):
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    row = await tx.get(JobRow, job, lock=True)
                    if row is not None and row.state == "placed" and row.node is not None:
                        await self._bucket.put(f"{row.node}.{row.id}", self._told(row, row.node))
                        row.written = True
        over = await self._runtime.store.look(_KEYS, (BATCH,))
        if over:
            await asyncio.gather(*(self._bucket.delete(f"{node}.{job}") for node, job in over))
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await (await tx.connection()).execute(_REMOVED, ([job for _, job in over],))

    def _told(self, row: JobRow, node: str) -> bytes:
        job = Job.model_validate(row.body)
        volumes = job.spec.volumes if row.revision else ()
        spec = job.spec.model_copy(update={"variables": None, "volumes": volumes})
        told = NodeJob(
            job=job.model_copy(update={"spec": spec}),
            workload=NodeWorkload(
                node=node,
                revision=max(1, row.revision),
                home=row.home,
                spec=spec,
                slots=(Slot(process=job.kind, index=0),),
                variables=self._variables(node, job.spec),
            ),
            cancelled=row.cancelled,
        )
        return told.model_dump_json().encode()


def _placed(row: JobRow, node: str) -> JobPlaced:
    return JobPlaced(job=row.id, workload=row.workload, organization=row.organization, placed_on=node)


def _columns(room: Room) -> dict[str, int]:
    return {"cpu": room.cpu_millis, "memory": room.memory_mb, "disk": room.disk_mb}


async def _reserve(connection: AsyncConnection[Any], row: JobRow, spec: WorkloadSpec, tie: Tie) -> str | None:
    """The node whose room it has now."""
    wanted = {
        "region": row.region,
        "workload": row.workload,
        "bound": tie.bound,
        "labels": Jsonb(dict(spec.needs.labels)),
        "architecture": spec.needs.architecture,
        "runtime": spec.needs.runtime,
        **_columns(tie.room),
    }
    for least in (tie.whole, tie.room):
        if least is not None:
            enough = {f"least_{name}": size for name, size in _columns(least).items()}
            found = await (await connection.execute(_PLACE, wanted | enough)).fetchone()
            if found is not None:
                return str(found[0])
    return None
