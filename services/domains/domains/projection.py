"""Keeps the `routes` bucket at what the tables say: hostname -> workload, for every ingress.

Invariant: a lower revision is never written over a higher one, and a route leaves by its own deletion. The
bucket is compared with the table at start and for ever after, so it may even be lost. Loops of `app`.
"""

from contracts.errors import Conflict, Unavailable
from contracts.model import Model
from contracts.workload import Route
from pydantic import ValidationError
from runtime.runtime import Runtime
from runtime.store import PLATFORM
from sqlalchemy import select, update

from domains.tables import HostnameRow

PAGE = 200
TRIES = 5


class _Revision(Model):
    revision: int


class Projection:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._bucket = runtime.bus.bucket("routes")
        self._strangers: set[str] = set()

    async def project(self) -> None:
        """Writes everything that is not written; what fails is left for the next time, and stops nothing."""
        if not self._runtime.bus.connected:
            return
        after, failed = "", None
        while True:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                rows = await tx.scalars(
                    select(HostnameRow)
                    .where(HostnameRow.written < HostnameRow.revision, HostnameRow.hostname > after)
                    .order_by(HostnameRow.hostname)
                    .limit(PAGE)
                )
            if not rows:
                break
            for row in rows:
                try:
                    await self._write(row)
                except Unavailable as error:
                    failed = error
            after = rows[-1].hostname
        if failed is not None:
            raise failed

    async def _write(self, row: HostnameRow) -> None:
        for _ in range(TRIES):
            try:
                await self._bring(row)
                break
            except Conflict:
                continue
        else:
            raise Unavailable(f"others keep writing {row.hostname}")
        async with self._runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(
                update(HostnameRow)
                .where(HostnameRow.hostname == row.hostname, HostnameRow.written < row.revision)
                .values(written=row.revision)
            )

    async def _bring(self, row: HostnameRow) -> None:
        entry = await self._bucket.get(row.hostname)
        if entry is not None and revision_in(entry.value) >= row.revision:
            return
        if row.workload is None:
            if entry is not None:
                await self._bucket.delete(row.hostname, last=entry.revision)
            return
        route = Route(
            hostname=row.hostname,
            workload=row.workload,
            organization=row.organization,
            revision=row.revision,
        )
        content = route.model_dump_json().encode()
        if entry is None:
            await self._bucket.create(row.hostname, content)
        else:
            await self._bucket.update(row.hostname, content, last=entry.revision)

    async def survey(self) -> None:
        """Compares the whole bucket with the table, and writes again whatever is not as it should be."""
        if not self._runtime.bus.connected:
            return
        # The bucket first: what the table then says is at least as new, so ahead of it means wrong.
        there = {key: revision_in(e.value) for key, e in (await self._bucket.entries()).items()}
        async with self._runtime.store.transaction(PLATFORM) as tx:
            rows = await tx.scalars(select(HostnameRow))
            for row in rows:
                found = there.pop(row.hostname, 0)
                if found > row.revision:
                    # The table is behind, as after a restore: it is the truth, and says it louder.
                    await self._correct(row.hostname, revision=found + 1)
                elif (row.workload is None and found) or (row.workload is not None and found < row.written):
                    await self._correct(row.hostname, revision=row.revision)
        if there.keys() - self._strangers:
            self._runtime.log.warning("the bucket names what nobody knows; left alone", keys=sorted(there))
        self._strangers = set(there)
        await self.project()

    async def _correct(self, hostname: str, revision: int) -> None:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(
                update(HostnameRow)
                .where(HostnameRow.hostname == hostname, HostnameRow.revision <= revision)
                .values(revision=revision, written=0)
            )


def revision_in(value: bytes) -> int:
    """0 for what is no route at all, so that anything replaces it."""
    try:
        return _Revision.model_validate_json(value).revision
    except ValidationError:
        return 0
