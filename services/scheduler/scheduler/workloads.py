"""What customers want: the newest specification of every workload, as the gateway owns it.

Invariant: a specification only ever gives way to one of a higher generation, whether an event or the owner's
snapshot brought it, and each new one is due to be placed. Called by `app` for events and as a loop.
"""

from collections.abc import Callable, Sequence

from contracts.errors import Unavailable
from contracts.events import AppChanged, AppDeleted
from contracts.queries import WorkloadsAfter
from contracts.workload import WorkloadSpec
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

_GENERATIONS = "select id, generation from workload where id = any(%s)"

# In the order of ids, so that two who adopt at once wait for each other instead of locking up.
_ADOPT = """
insert into workload as known (id, organization, region, generation, spec, due_at)
select id, organization, region, generation, spec, now()
from unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::jsonb[])
    as newer(id, organization, region, generation, spec)
order by id
on conflict (id) do update set
    organization = excluded.organization, region = excluded.region, generation = excluded.generation,
    spec = excluded.spec, due_at = excluded.due_at, failures = 0
where known.generation < excluded.generation
"""


class Workloads:
    def __init__(self, runtime: Runtime, place: Callable[[], None]) -> None:
        self._runtime = runtime
        self._place = place

    async def changed(self, events: Sequence[AppChanged | AppDeleted], tx: Tx) -> None:
        await self.adopt([event.spec for event in events], tx)

    async def adopt(self, specs: Sequence[WorkloadSpec], tx: Tx) -> None:
        newest: dict[str, WorkloadSpec] = {}
        for spec in specs:
            if spec.id not in newest or newest[spec.id].generation < spec.generation:
                newest[spec.id] = spec
        connection = await tx.connection()
        # Asked first: an upsert locks and rewrites rows even where its condition then refuses them.
        cursor = await connection.execute(_GENERATIONS, (list(newest),), prepare=True)
        for id, generation in await cursor.fetchall():
            if newest[id].generation <= generation:
                del newest[id]
        if not newest:
            return
        chosen = list(newest.values())
        await connection.execute(
            _ADOPT,
            (
                [spec.id for spec in chosen],
                [spec.organization for spec in chosen],
                [spec.region for spec in chosen],
                [spec.generation for spec in chosen],
                [spec.model_dump_json() for spec in chosen],
            ),
            prepare=True,
        )
        tx.after_commit(self._place)

    async def heal(self) -> None:
        """Reads the owner's whole snapshot: what no event told, or told too late, is adopted now."""
        question = WorkloadsAfter()
        while True:
            page = await self._runtime.bus.ask(question)
            await self._adopt_page(page.specs)
            if page.next is None:
                return
            question = WorkloadsAfter(after=page.next)

    async def _adopt_page(self, specs: Sequence[WorkloadSpec]) -> None:
        try:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await self.adopt(specs, tx)
        except Unavailable:
            raise
        except Exception as error:
            # One specification the database refuses must not keep the others from healing.
            if len(specs) == 1:
                self._runtime.log.error("workload not adopted", workload=specs[0].id, error=str(error))
                return
            for spec in specs:
                await self._adopt_page([spec])
