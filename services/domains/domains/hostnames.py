"""Gives every workload its system hostname and takes it back at the end.

Invariant: a hostname belongs to at most one workload, and a workload that was deleted never gets one again,
in whatever order its events come. Called by `app` for events and, through the owner's snapshot, as a loop.
"""

from collections.abc import Callable, Sequence

from contracts.errors import Conflict, Unavailable
from contracts.events import AppChanged, AppCreated, AppDeleted, HostnameAssigned
from contracts.queries import WorkloadsAfter
from contracts.workload import WorkloadSpec
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx
from sqlalchemy import select, text, update

from domains.names import address, candidates
from domains.tables import HostnameRow, WorkloadRow

# True when the specification is news: of two who bring it at once, one waits here and then finds it known.
_SEE = text("""
insert into workload as known (id, organization, generation) values (:id, :organization, :generation)
on conflict (id) do update set generation = excluded.generation where known.generation < excluded.generation
returning id
""")

_TAKE = text("""
insert into hostname as known (hostname, organization, workload, revision)
values (:hostname, :organization, :workload, 1)
on conflict (hostname) do update
    set organization = excluded.organization, workload = excluded.workload, revision = known.revision + 1
    where known.workload is null
returning hostname
""")


class Hostnames:
    def __init__(self, runtime: Runtime, public_port: int, project: Callable[[], None]) -> None:
        self._runtime = runtime
        self._public_port = public_port
        self._project = project

    async def changed(self, event: AppCreated | AppChanged | AppDeleted, tx: Tx) -> None:
        await self.adopt(event.spec, tx)

    async def adopt(self, spec: WorkloadSpec, tx: Tx) -> None:
        seen = {"id": spec.id, "organization": spec.organization, "generation": spec.generation}
        if (await tx.execute(_SEE, seen)).first() is None:
            return
        if spec.state == "deleted":
            await tx.execute(
                update(HostnameRow)
                .where(HostnameRow.workload == spec.id)
                .values(workload=None, revision=HostnameRow.revision + 1)
            )
        else:
            hostname = await self._hostname_of(spec, tx)
            # Said with every generation, so that whoever missed it once hears it again.
            tx.publish(
                HostnameAssigned(
                    id=f"hostname-{spec.id}-{spec.generation}",
                    at=self._runtime.clock.now(),
                    workload=spec.id,
                    organization=spec.organization,
                    hostname=hostname,
                    url=address(hostname, self._public_port),
                )
            )
        tx.after_commit(self._project)

    async def _hostname_of(self, spec: WorkloadSpec, tx: Tx) -> str:
        known = await tx.one(select(HostnameRow).where(HostnameRow.workload == spec.id))
        if known is not None:
            return known.hostname
        base_domain = self._runtime.settings.base_domain_of(spec.region)
        for hostname in candidates(spec.name, spec.environment, spec.id, base_domain):
            wanted = {"hostname": hostname, "organization": spec.organization, "workload": spec.id}
            if (await tx.execute(_TAKE, wanted)).first() is not None:
                return hostname
        raise Conflict(f"no hostname is left for {spec.name} below {base_domain}", workload=spec.id)

    async def heal(self) -> None:
        """Reads the owner's whole snapshot: what no event told is adopted now."""
        question = WorkloadsAfter()
        while True:
            page = await self._runtime.bus.ask(question)
            for spec in await self._news(page.specs):
                await self._adopt_alone(spec)
            if page.next is None:
                return
            question = WorkloadsAfter(after=page.next)

    async def _news(self, specs: Sequence[WorkloadSpec]) -> list[WorkloadSpec]:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            rows = await tx.scalars(
                select(WorkloadRow).where(WorkloadRow.id.in_([spec.id for spec in specs]))
            )
        known = {row.id: row.generation for row in rows}
        return [spec for spec in specs if known.get(spec.id, 0) < spec.generation]

    async def _adopt_alone(self, spec: WorkloadSpec) -> None:
        try:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await self.adopt(spec, tx)
        except Unavailable:
            raise
        except Exception as error:
            # One workload that cannot be adopted must not keep the others from healing.
            self._runtime.log.error("workload not adopted", workload=spec.id, error=str(error))
