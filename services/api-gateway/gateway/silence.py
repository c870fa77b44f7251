"""Apps that came to life and do not answer any more, as the scheduler knows from what their nodes say.

Asked for again and again, so that nothing has to be told of every instance that stumbles. Called by a loop;
`outages` looks for those that stay so for too long.
"""

from contracts.errors import Unavailable
from contracts.queries import SilentAfter
from runtime.sparing import sparing
from runtime.store import PLATFORM
from sqlalchemy import Text, any_, literal, select
from sqlalchemy.dialects.postgresql import ARRAY

from gateway import workloads
from gateway.desk import Desk
from gateway.tables import WorkloadRow

_BATCH = 200


async def listen(desk: Desk) -> None:
    try:
        silent = await _silent(desk)
    except Unavailable:
        # Nobody knows anything new.
        return
    while await _note_some(desk, silent):
        pass


async def _note_some(desk: Desk, silent: list[str]) -> bool:
    async with desk.store.transaction(PLATFORM) as tx:
        is_silent = WorkloadRow.id == any_(literal(silent, ARRAY(Text)))
        found = await tx.scalars(
            select(WorkloadRow)
            .where(WorkloadRow.silent != is_silent, WorkloadRow.state != "deleted")
            .order_by(WorkloadRow.id)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        for row in found:
            row.silent = not row.silent
            with sparing("an app that falls silent, or answers, is not noted", app=row.id):
                await workloads.settle(tx, row)
        return bool(found)


async def _silent(desk: Desk) -> list[str]:
    found: list[str] = []
    after: str | None = None
    while True:
        page = await desk.bus.ask(SilentAfter(after=after))
        found += page.workloads
        if page.next is None:
            return found
        after = page.next
