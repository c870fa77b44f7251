"""Gives every workload its system hostname, and takes it back when the workload is deleted.

Invariant: a hostname has one workload, first come; a workload that is not deleted has exactly one. What
events did not tell, the owner's snapshot tells through the same `apply`. Called by `app` for events and as a
loop.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from contracts.errors import InvalidInput, Unavailable
from contracts.events import AppChanged, AppCreated, AppDeleted, HostnameAssigned
from contracts.queries import WorkloadsAfter
from contracts.workload import WorkloadSpec
from psycopg import AsyncConnection
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

from domains.routes import candidates, stays_with, url_of
from domains.settings import DomainsSettings

_KNOWN = """
select w.id, w.generation, h.hostname, h.url
from workload w left join hostname h on h.workload = w.id and h.released_at is null
where w.id = any(%s)
"""

# Locks the workload, in the order of ids, so that two who work on the same ones do it one after the other.
_ADOPT = """
insert into workload as known (id, organization, generation)
select * from unnest(%s::text[], %s::text[], %s::bigint[]) as newer(id, organization, generation) order by id
on conflict (id) do update set generation = excluded.generation
where known.generation <= excluded.generation
returning id
"""

_TAKE = """
insert into hostname as known (hostname, workload, organization, url, revision)
values (%(hostname)s, %(workload)s, %(organization)s, %(url)s, 1)
on conflict (hostname) do update set
    workload = excluded.workload, organization = excluded.organization, url = excluded.url,
    revision = known.revision + 1, released_at = null
where known.released_at is not null
    and (known.organization = excluded.organization or known.released_at <= %(free_since)s)
returning hostname
"""

_RELEASE = """
update hostname set released_at = %s, revision = revision + 1
where workload = %s and hostname = any(%s) and released_at is null
"""

_RENAME = "update hostname set url = %s where hostname = %s"


class Hostnames:
    def __init__(self, runtime: Runtime, settings: DomainsSettings, project: Callable[[], None]) -> None:
        self._runtime = runtime
        self._settings = settings
        self._project = project

    async def changed(self, events: Sequence[AppCreated | AppChanged | AppDeleted], tx: Tx) -> None:
        await self.apply([event.spec for event in events], tx)

    async def apply(self, specs: Sequence[WorkloadSpec], tx: Tx) -> None:
        newest: dict[str, WorkloadSpec] = {}
        for spec in specs:
            if spec.id not in newest or newest[spec.id].generation < spec.generation:
                newest[spec.id] = spec
        connection = await tx.connection()
        # Looked at before anything is locked: nearly always nothing is to do.
        known = await _known(connection, list(newest))
        unsettled = [
            spec for spec in newest.values() if not self._settled(spec, *known.get(spec.id, (0, {})))
        ]
        if not unsettled:
            return
        cursor = await connection.execute(
            _ADOPT,
            (
                [s.id for s in unsettled],
                [s.organization for s in unsettled],
                [s.generation for s in unsettled],
            ),
            prepare=True,
        )
        adopted = sorted(id for (id,) in await cursor.fetchall())
        for id, (_, held) in (await _known(connection, adopted)).items():
            await self._settle(connection, newest[id], held, tx)
        tx.after_commit(self._project)

    def _settled(self, spec: WorkloadSpec, generation: int, held: Mapping[str, str]) -> bool:
        if generation != spec.generation:
            return generation > spec.generation
        hostname = stays_with(spec, held, self._runtime.settings.base_domain_of(spec.region))
        if hostname is None:
            return spec.state == "deleted" and not held
        return held == {hostname: url_of(hostname, self._settings.public_port)}

    async def _settle(
        self, connection: AsyncConnection[Any], spec: WorkloadSpec, held: Mapping[str, str], tx: Tx
    ) -> None:
        hostname = stays_with(spec, held, self._runtime.settings.base_domain_of(spec.region))
        given_up = [name for name in held if name != hostname]
        if given_up:
            now = self._runtime.clock.now()
            await connection.execute(_RELEASE, (now, spec.id, given_up), prepare=True)
        if spec.state == "deleted":
            return
        if hostname is None:
            hostname = await self._take(connection, spec)
        elif held[hostname] != url_of(hostname, self._settings.public_port):
            url = url_of(hostname, self._settings.public_port)
            await connection.execute(_RENAME, (url, hostname), prepare=True)
        else:
            return
        tx.publish(
            HostnameAssigned(
                workload=spec.id,
                organization=spec.organization,
                hostname=hostname,
                url=url_of(hostname, self._settings.public_port),
            )
        )

    async def _take(self, connection: AsyncConnection[Any], spec: WorkloadSpec) -> str:
        free_since = self._runtime.clock.now() - timedelta(days=self._settings.quarantine_days)
        base_domain = self._runtime.settings.base_domain_of(spec.region)
        for hostname in candidates(spec, base_domain, self._settings.reserved):
            values = {
                "hostname": hostname,
                "workload": spec.id,
                "organization": spec.organization,
                "url": url_of(hostname, self._settings.public_port),
                "free_since": free_since,
            }
            cursor = await connection.execute(_TAKE, values, prepare=True)
            if await cursor.fetchone() is not None:
                return hostname
        raise InvalidInput(
            f"every hostname of {spec.id} below {base_domain} is somebody else's", workload=spec.id
        )

    # --- the owner's snapshot --------------------------------------------------------------------------

    async def heal(self) -> None:
        question = WorkloadsAfter()
        while True:
            page = await self._runtime.bus.ask(question)
            await self._apply_page(page.specs)
            if page.next is None:
                return
            question = WorkloadsAfter(after=page.next)

    async def _apply_page(self, specs: Sequence[WorkloadSpec]) -> None:
        try:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await self.apply(specs, tx)
        except Unavailable:
            raise
        except Exception as error:
            # One workload that cannot have a hostname must not keep the others from theirs.
            if len(specs) == 1:
                self._runtime.log.error("no hostname", workload=specs[0].id, error=str(error))
                return
            for spec in specs:
                await self._apply_page([spec])


async def _known(
    connection: AsyncConnection[Any], ids: Sequence[str]
) -> dict[str, tuple[int, dict[str, str]]]:
    """id -> newest generation, and the hostnames it has with their URLs."""
    found: dict[str, tuple[int, dict[str, str]]] = {}
    cursor = await connection.execute(_KNOWN, (list(ids),), prepare=True)
    for id, generation, hostname, url in await cursor.fetchall():
        _, held = found.setdefault(id, (generation, {}))
        if hostname is not None:
            held[hostname] = url
    return found
