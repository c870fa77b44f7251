"""Keeps the `desired` bucket at what the tables say: one key per node and workload, the truth for its agent.

Invariant: a lower revision is never written over a higher one. A workload that leaves a node stays there as
an entry without slots: an absent key is an order to nobody. The bucket is compared with the tables at start
and for ever after, so it may even be lost. Runs as loops of `app`.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from contracts import variables
from contracts.copies import CopyClaim, keys_for_node, volume_key
from contracts.errors import Conflict, InvalidInput, Unavailable
from contracts.model import Model
from contracts.workload import NodeWorkload, Slot, WorkloadSpec
from pydantic import ValidationError
from runtime.runtime import Runtime
from runtime.seal import Seal
from runtime.store import PLATFORM

from scheduler.places import Places

PAGE = 200
SURVEY_SECONDS = 60.0
TRIES = 5

_UNWRITTEN = """
select told.node, told.workload, told.revision, w.in_force::text,
    array(select process from placement p where p.workload = told.workload and p.node = told.node
        and p.leaving is null order by process, index),
    array(select index from placement p where p.workload = told.workload and p.node = told.node
        and p.leaving is null order by process, index),
    w.home, w.proven, case when w.bound = told.node then w.claim end, w.origins,
    w.moving and coalesce(w.bound = told.node, false), coalesce(w.bound = told.node, false), w.made
from projection told join workload w on w.id = told.workload
where told.written < told.revision and (told.node, told.workload) > (%s, %s)
order by told.node, told.workload limit %s
"""

_WRITTEN = """
with chosen as (
    select p.node, p.workload, done.revision from projection p
    join unnest(%s::text[], %s::text[], %s::bigint[]) as done(node, workload, revision)
        on p.node = done.node and p.workload = done.workload
    order by p.node, p.workload for no key update of p
)
update projection p set written = greatest(p.written, chosen.revision), written_at = %s
from chosen where p.node = chosen.node and p.workload = chosen.workload
"""

_KNOWN = "select node, workload, revision, written from projection"

_LOST = """
with chosen as (
    select p.node, p.workload from projection p
    join unnest(%s::text[], %s::text[], %s::bigint[]) as lost(node, workload, written)
        on p.node = lost.node and p.workload = lost.workload and p.written = lost.written
    order by p.node, p.workload for no key update of p
)
update projection p set written = 0 from chosen
where p.node = chosen.node and p.workload = chosen.workload
"""

_OUTBID = """
update workload set revision = greatest(revision, %s) + 1
where id = %s and in_force is not null returning revision
"""

_TELL_AGAIN = """
insert into projection as known (node, workload, slots, revision)
select name, %s, 0, %s from node where name = %s
on conflict (node, workload) do update set revision = excluded.revision, vacant = false
returning node
"""

_FORGETTABLE = """
select told.node, told.workload, told.revision from projection told join workload w on w.id = told.workload
where told.slots = 0 and told.vacant and told.written = told.revision and w.in_force ->> 'state' = 'deleted'
    -- What was told says since when a place is to be left: until its room is given back, that is needed.
    and not exists (select from placement p where p.workload = told.workload and p.node = told.node)
limit %s
"""

_FORGET = "delete from projection where node = %s and workload = %s and revision = %s and vacant"


class _Revision(Model):
    revision: int


class Projection:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._bucket = runtime.bus.bucket("desired")
        self._places = Places(runtime)
        self._strangers: set[str] = set()
        self._sealing: dict[str, Seal] = {}
        # Of the last survey: the connection it was made on, and when.
        self._surveyed: tuple[int, float] | None = None

    # --- from the tables to the bucket ---------------------------------------------------------------

    async def project(self) -> None:
        """Writes everything that is not written; what fails is left for the next time, and stops nothing."""
        if not self._runtime.bus.connected:
            return
        after, failed = ("", ""), None
        while True:
            rows = await self._runtime.store.look(_UNWRITTEN, (*after, PAGE))
            if not rows:
                break
            began = self._runtime.clock.now()
            # Before its nodes: who is told to leave is sent nothing new by then.
            unplaced = await self._places.tell({row[1] for row in rows})
            outcomes = await asyncio.gather(*(self._write(row) for row in rows), return_exceptions=True)
            done = []
            for (node, workload, revision, *_), outcome in zip(rows, outcomes, strict=True):
                if isinstance(outcome, BaseException) or workload in unplaced:
                    failed = unplaced.get(workload) or outcome
                else:
                    done.append((node, workload, revision))
            await self._note(_WRITTEN, done, began)
            after = rows[-1][:2]
        if failed is not None:
            raise failed

    async def _write(self, row: Sequence[Any]) -> None:
        node, workload, revision, spec, processes, indexes, home, proven, claim, origins = row[:10]
        moving, at_home, made = row[10:]
        # Who has left is told of the end, and of no secret that has come since.
        trusted = bool(processes) or at_home
        known = WorkloadSpec.model_validate_json(spec)
        value = NodeWorkload(
            node=node,
            revision=revision,
            spec=known.model_copy(update={"variables": None}),
            variables=self.variables(node, known) if trusted else None,
            slots=tuple(Slot(process=p, index=i) for p, i in zip(processes, indexes, strict=True)),
            home=home,
            proven=proven,
            claim=None if claim is None else CopyClaim.model_validate(claim),
            moving=moving,
            volume_keys=self._volume_keys(node, known, origins) if trusted else None,
            made=made if at_home else (),
        )
        content, key = value.model_dump_json().encode(), key_of(node, workload)
        for _ in range(TRIES):
            entry = await self._bucket.get(key)
            try:
                if entry is None:
                    await self._bucket.create(key, content)
                elif revision_in(entry.value) < revision:
                    await self._bucket.update(key, content, last=entry.revision)
                return
            except Conflict:
                continue
        raise Unavailable(f"others keep writing {key}")

    def variables(self, node: str, spec: WorkloadSpec) -> str | None:
        """Its variables, sealed anew so that they open on this node and on no other."""
        if spec.variables is None:
            return None
        try:
            text = self._seals("variables").open(spec.variables, variables.for_scheduler(spec.id))
        except InvalidInput as error:
            # The node says so of the rollout, where the customer sees it; without a word he would wait.
            self._runtime.log.error("variables cannot be unsealed", workload=spec.id, error=error.message)
            return None
        return self._seals(f"node/{node}").close(text, variables.for_node(spec.id, node))

    def _volume_keys(self, node: str, spec: WorkloadSpec, origins: Mapping[str, str]) -> str | None:
        """Of its encrypted volumes that were made on other nodes, sealed for this one."""
        keys = {
            volume.id: volume_key(self._runtime.settings.seal_key_of(f"node/{origin}"), volume.id)
            for volume in spec.volumes
            if volume.encrypted and (origin := origins.get(volume.id, node)) != node
        }
        if not keys:
            return None
        return self._seals(f"node/{node}").close(json.dumps(keys), keys_for_node(spec.id, node))

    def _seals(self, purpose: str) -> Seal:
        if purpose not in self._sealing:
            self._sealing[purpose] = Seal(self._runtime.settings.seal_key_of(purpose))
        return self._sealing[purpose]

    # --- from the bucket to the tables ---------------------------------------------------------------

    async def watch(self) -> None:
        """Surveys the bucket at start, after every reconnect (the server may have lost its disk) and slowly
        for ever."""
        if not self._runtime.bus.connected:
            return
        connection, now = self._runtime.bus.client.stats["reconnects"], self._runtime.clock.monotonic()
        if (
            self._surveyed is None
            or self._surveyed[0] != connection
            or now >= self._surveyed[1] + SURVEY_SECONDS
        ):
            await self.survey()
            self._surveyed = connection, now

    async def survey(self) -> None:
        """Compares the whole bucket with the tables, and writes again whatever is not as it should be."""
        # The bucket first: what the tables then say is at least as new, so ahead of them means wrong.
        there = {key: revision_in(e.value) for key, e in (await self._bucket.entries()).items()}
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            rows = await (await connection.execute(_KNOWN)).fetchall()
        lost, unplaced = [], await self._places.lost()
        for node, workload, revision, written in rows:
            found = there.pop(key_of(node, workload), 0)
            if found > revision:
                await self._outbid(node, workload, found)
            elif found < written or (written and workload in unplaced):
                lost.append((node, workload, written))
        if lost:
            self._runtime.log.warning("the bucket lacks what was written, writing it again", keys=len(lost))
            await self._note(_LOST, lost)
        strangers = {
            key for key, found in there.items() if not await self._outbid(*key.partition(".")[::2], found)
        }
        if strangers - self._strangers:
            self._runtime.log.warning(
                "the bucket names what nobody knows; left alone", keys=sorted(strangers)
            )
        self._strangers = strangers
        await self.project()

    async def _outbid(self, node: str, workload: str, found: int) -> bool:
        """The tables are behind the bucket, as after a restore: they are the truth, and say it louder."""
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            row = await (await connection.execute(_OUTBID, (found, workload))).fetchone()
            if row is None:
                return False
            told = await (await connection.execute(_TELL_AGAIN, (workload, row[0], node))).fetchone()
        return told is not None

    # --- what has left for good ----------------------------------------------------------------------

    async def forget(self) -> None:
        """Deletes the keys of deleted workloads of which nothing runs. All others keep theirs, on nodes they
        have left too: those may still hold something of them, and hear of the end through it."""
        if not self._runtime.bus.connected:
            return
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            rows = await (await connection.execute(_FORGETTABLE, (PAGE,), prepare=True)).fetchall()
        for node, workload, revision in rows:
            key = key_of(node, workload)
            entry = await self._bucket.get(key)
            if entry is not None and revision_in(entry.value) == revision:
                try:
                    await self._bucket.delete(key, last=entry.revision)
                except Conflict:
                    continue
            await self._places.forget(workload)
            async with self._runtime.store.transaction(PLATFORM) as tx:
                connection = await tx.connection()
                await connection.execute(_FORGET, (node, workload, revision))

    async def _note(self, statement: str, rows: Sequence[Sequence[Any]], *more: Any) -> None:
        if not rows:
            return
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            await connection.execute(statement, (*(list(c) for c in zip(*rows, strict=True)), *more))


def key_of(node: str, workload: str) -> str:
    return f"{node}.{workload}"


def revision_in(value: bytes) -> int:
    """0 for what is no desired state at all, so that anything replaces it."""
    try:
        return _Revision.model_validate_json(value).revision
    except ValidationError:
        return 0
