"""What nodes say they have of copies: one that is not there any more is counted on no longer.

Nothing is taken away because of what a node says: a copy that is missing keeps its room, another one is made,
and should the node have it again, it counts again. The silence of a node says nothing. Called by `app` for
reports.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta

from contracts.errors import Unavailable
from contracts.events import AlertRaised
from contracts.reports import CopiesHeld
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

# A page may have been written before the copy was complete, and read afterwards.
SETTLED = timedelta(seconds=60)
NAMED = 20

# Both may compare texts; only byte by byte do they agree with the node.
_PAGE = """
c.node = %(node)s and c.taken_at is not null
    and (%(after)s::text is null or c.workload collate "C" > %(after)s)
    and (%(until)s::text is null or c.workload collate "C" <= %(until)s)
"""

_HERE = """
exists (
    select from unnest(%(workloads)s::text[], %(moments)s::timestamptz[]) as here(workload, taken_at)
    where here.workload = c.workload and here.taken_at >= c.taken_at
)
"""

_GONE = f"""
update copy c set missing = true
where {_PAGE} and not c.missing and not c.dropping and not {_HERE}
    and coalesce(c.complete_at < %(settled)s, true)
returning c.workload
"""

_BACK = f"update copy c set missing = false where {_PAGE} and c.missing and {_HERE} returning c.workload"


class Held:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._nudge: Callable[[], None] = lambda: None

    def on_change(self, call: Callable[[], None]) -> None:
        self._nudge = call

    async def heard(self, reports: Sequence[CopiesHeld]) -> None:
        for report in reports:
            try:
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    await self._hear(tx, report)
            except Unavailable:
                raise
            except Exception:
                # It is said again; what others say is heard meanwhile.
                self._runtime.log.exception("what was said of copies is lost on us", node=report.node)

    async def _hear(self, tx: Tx, report: CopiesHeld) -> None:
        connection = await tx.connection()
        said = {
            "node": report.node,
            "after": report.after,
            "until": report.until,
            "workloads": [copy.workload for copy in report.copies],
            "moments": [copy.taken_at for copy in report.copies],
            "settled": self._runtime.clock.now() - SETTLED,
        }
        back = await (await connection.execute(_BACK, said, prepare=True)).fetchall()
        gone = sorted(w for (w,) in await (await connection.execute(_GONE, said, prepare=True)).fetchall())
        if back:
            self._runtime.log.info("copies are there again", node=report.node, copies=len(back))
        if not gone:
            return
        self._runtime.log.warning("copies are gone", node=report.node, copies=len(gone))
        tx.publish(
            AlertRaised(
                service=self._runtime.name,
                severity="warning",
                title=f"Copies of volumes are gone from {report.node}, and are made again",
                details={
                    "node": report.node,
                    "copies": str(len(gone)),
                    "workloads": ", ".join(gone[:NAMED]),
                    "look": "its disk, and volumes/copies in the state folder of its agent",
                },
            )
        )
        tx.after_commit(self._nudge)
