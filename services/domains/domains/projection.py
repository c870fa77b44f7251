"""Keeps the `routes` bucket at what the tables say: one key per hostname, read by every ingress.

Invariant: a route is removed because its hostname was released, never because it is missing here. The bucket
is compared with the tables at start and for ever after, so it may even be lost. Runs as loops of `app`.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from contracts.errors import Conflict, Unavailable
from contracts.workload import Route
from pydantic import ValidationError
from runtime.runtime import Runtime
from runtime.store import PLATFORM

from domains.routes import compare

PAGE = 100
SURVEY_SECONDS = 60.0
TRIES = 5

# Locked until it is written: else a slow writer could put back what a faster one has removed.
_UNWRITTEN = """
select hostname, workload, organization, revision, released_at is not null
from hostname where written < revision order by hostname limit %s for no key update skip locked
"""

_ANY = "select exists (select from hostname where written < revision)"

_WRITTEN = """
update hostname set written = done.revision, revision = done.revision
from unnest(%s::text[], %s::bigint[]) as done(hostname, revision) where hostname.hostname = done.hostname
"""

_ALL = """
select hostname, workload, organization, revision, released_at is not null, written = revision from hostname
"""

_AGAIN = """
update hostname set written = 0 from (
    select hostname from hostname where hostname = any(%s) order by hostname for no key update
) wrong where hostname.hostname = wrong.hostname
"""


class Projection:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._bucket = runtime.bus.bucket("routes")
        self._unknown: set[str] = set()
        # Of the last survey: the connection it was made on, and when.
        self._surveyed: tuple[int, float] | None = None

    async def project(self) -> bool:
        """Writes what is not written yet; what fails is left for the next time, and stops nothing."""
        if not self._runtime.bus.connected:
            return False
        if not (await self._runtime.store.look(_ANY))[0][0]:
            return False
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            rows = await (await connection.execute(_UNWRITTEN, (PAGE,), prepare=True)).fetchall()
            outcomes = await asyncio.gather(*(self._write(row) for row in rows), return_exceptions=True)
            done = [(row[0], o) for row, o in zip(rows, outcomes, strict=True) if isinstance(o, int)]
            if done:
                await connection.execute(_WRITTEN, tuple(map(list, zip(*done, strict=True))), prepare=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return len(rows) == PAGE

    async def _write(self, row: Sequence[Any]) -> int:
        """The revision that is now in the bucket."""
        hostname, revision = row[0], row[3]
        for _ in range(TRIES):
            entry = await self._bucket.get(hostname)
            found = None if entry is None else route_in(entry.value)
            route = _route(row)
            if found is not None and found != route:
                # The tables may be behind the bucket, as after a restore: they are the truth all the same.
                revision = max(revision, found.revision + 1)
                route = route and route.model_copy(update={"revision": revision})
            try:
                if route is None:
                    if entry is not None:
                        await self._bucket.delete(hostname, last=entry.revision)
                elif entry is None:
                    await self._bucket.create(hostname, route.model_dump_json().encode())
                elif found != route:
                    await self._bucket.update(hostname, route.model_dump_json().encode(), last=entry.revision)
                return int(revision)
            except Conflict:
                continue
        raise Unavailable(f"others keep writing {hostname}")

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
        found = {key: route_in(entry.value) for key, entry in (await self._bucket.entries()).items()}
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            rows = await (await connection.execute(_ALL)).fetchall()
            difference = compare({row[0]: _route(row) for row in rows}, found)
            # What is only just about to be written is not wrong yet.
            wrong = sorted({row[0] for row in rows if row[5]}.intersection(difference.wrong))
            if wrong:
                await connection.execute(_AGAIN, (wrong,))
        if wrong:
            self._runtime.log.warning("routes are not what they should be", hostnames=len(wrong))
        if set(difference.unknown) - self._unknown:
            self._runtime.log.warning("routes nobody knows; left alone", hostnames=difference.unknown)
        self._unknown = set(difference.unknown)
        while await self.project():
            pass


def _route(row: Sequence[Any]) -> Route | None:
    hostname, workload, organization, revision, released, *_ = row
    if released:
        return None
    return Route(hostname=hostname, workload=workload, organization=organization, revision=revision)


def route_in(value: bytes) -> Route | None:
    """None for what is no route at all, so that anything replaces it."""
    try:
        return Route.model_validate_json(value)
    except ValidationError:
        return None
