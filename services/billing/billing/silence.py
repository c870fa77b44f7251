"""Stops the meters of nodes nobody hears: what cannot be seen to run is not charged.

Invariant: an instance without a stop is charged to the moment its node was last heard, not for ever; also
where nobody knows its node, whose removal was not heard of here. When the node comes back, or tells the true
stop, the rest is charged then. Runs as a loop of `app`.
"""

from collections.abc import Callable

from contracts.queries import AllNodes, NodeInfo
from runtime.runtime import Runtime
from runtime.store import PLATFORM

from billing import due
from billing.due import changed_end

# On a node that is not known at all it is seen no further than now.
_DIFFERENT = """
select span.instance, span.organization, span.node, span.unseen_since, seen.since
from span left join unnest(%s::text[], %s::timestamptz[]) as said(node, unseen_since) on said.node = span.node
cross join lateral (
    select case when said.node is null then coalesce(span.unseen_since, %s) else said.unseen_since end
) as seen(since)
where span.stopped_at is null and span.unseen_since is distinct from seen.since
order by span.instance for no key update of span
"""

_SAY = """
update span set unseen_since = said.unseen_since
from unnest(%s::text[], %s::timestamptz[]) as said(instance, unseen_since)
where span.instance = said.instance
"""


class Silence:
    def __init__(self, runtime: Runtime, charge: Callable[[], None]) -> None:
        self._runtime = runtime
        self._charge = charge

    async def look(self) -> None:
        nodes = await self._nodes()
        since = [node.last_seen_at if node.status == "offline" else None for node in nodes]
        told = [node.name for node in nodes], since, self._runtime.clock.now()
        async with self._runtime.store.transaction(PLATFORM) as tx:
            await due.begin(tx)
            connection = await tx.connection()
            cursor = await connection.execute(_DIFFERENT, told, prepare=True)
            rows = await cursor.fetchall()
            if not rows:
                return
            await connection.execute(_SAY, ([r[0] for r in rows], [r[4] for r in rows]), prepare=True)
            await due.touched(
                tx, [changed_end(organization, old, new) for _, organization, _, old, new in rows]
            )
            tx.after_commit(self._charge)
        for node in sorted({row[2] for row in rows}):
            self._runtime.log.warning(
                "meters follow the node", node=node, spans=sum(row[2] == node for row in rows)
            )

    async def _nodes(self) -> list[NodeInfo]:
        question, found = AllNodes(limit=200), list[NodeInfo]()
        while True:
            page = await self._runtime.bus.ask(question)
            found += page.nodes
            if page.next is None:
                return found
            question = question.model_copy(update={"after": page.next})
