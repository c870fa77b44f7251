"""Records when instances ran: one span each, opened and closed by the agents' events.

Invariant: the same facts give the same span, in whatever order and however often they come. Of two starts the
first counts, of two stops the earlier; and the removal of a node is a stop, at its last word, of all that had
begun on it. Called by `app` for `instance.started`, `instance.stopped` and `node.removed`.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, LiteralString, TypeAlias

from contracts.errors import InvalidInput
from contracts.events import InstanceStarted, InstanceStopped, NodeRemoved
from psycopg import AsyncConnection
from runtime.runtime import Runtime
from runtime.store import Tx

from billing import due
from billing.due import Changed, changed_end
from billing.periods import OPENING

Fact: TypeAlias = InstanceStarted | InstanceStopped

# Inserting waits for another who is inserting the same; only then it is certain who is first.
_OPEN = """
insert into span (
    instance, workload, organization, process, index, node, micros_per_hour, currency, started_at, stopped_at
)
select * from unnest(
    %s::text[], %s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::text[],
    %s::timestamptz[], %s::timestamptz[]
) as fact(instance) order by instance
on conflict (instance) do nothing returning instance
"""

_KNOWN = "select instance from span where instance = any(%s)"

_ENDS = """
select instance, node, organization, stopped_at, coalesce(stopped_at, unseen_since)
from span where instance = any(%s) order by instance for no key update
"""

_CLOSE = """
update span set stopped_at = closed.at, unseen_since = null
from unnest(%s::text[], %s::timestamptz[]) as closed(instance, at) where span.instance = closed.instance
"""

_REMOVED = "insert into removal (node, at, heard_at) values (%s, %s, %s) on conflict do nothing"

# The first removal after its start is that of its machine; a later one is of another under the same name.
_LEFT_BEHIND = """
select span.instance, span.organization, coalesce(span.stopped_at, span.unseen_since),
    greatest(span.started_at, removal.heard_at)
from span cross join lateral (
    select heard_at from removal
    where removal.node = span.node and removal.at > span.started_at order by removal.at limit 1
) removal
where {which} and (span.stopped_at is null or span.stopped_at > greatest(span.started_at, removal.heard_at))
order by span.instance for no key update of span
"""

_THESE = _LEFT_BEHIND.format(which="span.instance = any(%s)")

_OF_NODE = _LEFT_BEHIND.format(which="span.node = %s and (span.stopped_at is null or span.stopped_at > %s)")


class Metering:
    def __init__(self, runtime: Runtime, currency: str, charge: Callable[[], None]) -> None:
        self._runtime = runtime
        self._currency = currency
        self._charge = charge

    async def started(self, events: Sequence[InstanceStarted], tx: Tx) -> None:
        await self._record({event.instance: event for event in reversed(events)}, tx)

    async def stopped(self, events: Sequence[InstanceStopped], tx: Tx) -> None:
        latest_first = sorted(events, key=lambda event: event.stopped_at, reverse=True)
        await self._record({event.instance: event for event in latest_first}, tx)

    async def node_removed(self, event: NodeRemoved, tx: Tx) -> None:
        """What its machine runs on, cut off, is nobody's to pay."""
        await due.begin_alone(tx)
        connection = await tx.connection()
        heard_at = min(event.last_seen_at, event.at)
        await connection.execute(_REMOVED, (event.node, event.at, heard_at), prepare=True)
        await due.touched(tx, await self._leave_behind(connection, _OF_NODE, event.node, heard_at))
        tx.after_commit(self._charge)

    async def _record(self, facts: Mapping[str, Fact], tx: Tx) -> None:
        await due.begin(tx)
        connection = await tx.connection()
        cursor = await connection.execute(_KNOWN, (list(facts),), prepare=True)
        known = {instance for (instance,) in await cursor.fetchall()}
        opened = await self._open(connection, [f for f in facts.values() if f.instance not in known])
        changes = [Changed(f.organization, f.started_at, _stopped_at(f)) for f in opened]
        changes += await self._leave_behind(connection, _THESE, [f.instance for f in opened])
        rest = facts.keys() - {f.instance for f in opened}
        changes += await self._close(
            connection, {i: f for i in rest if isinstance(f := facts[i], InstanceStopped)}
        )
        await due.touched(tx, changes)
        tx.after_commit(self._charge)

    async def _open(self, connection: AsyncConnection[Any], facts: Sequence[Fact]) -> list[Fact]:
        """Returns what was new."""
        if not facts:
            return []
        for fact in facts:
            self._check(fact)
        columns = zip(
            *(
                (
                    f.instance,
                    f.workload,
                    f.organization,
                    f.slot.process,
                    f.slot.index,
                    f.node,
                    f.rate.micros_per_hour,
                    f.rate.currency,
                    f.started_at,
                    _stopped_at(f),
                )
                for f in facts
            ),
            strict=True,
        )
        cursor = await connection.execute(_OPEN, [list(column) for column in columns], prepare=True)
        opened = {instance for (instance,) in await cursor.fetchall()}
        return [f for f in facts if f.instance in opened]

    async def _close(
        self, connection: AsyncConnection[Any], stops: Mapping[str, InstanceStopped]
    ) -> list[Changed]:
        if not stops:
            return []
        cursor = await connection.execute(_ENDS, (list(stops),), prepare=True)
        closed, changes = [], []
        for instance, node, organization, stopped_at, believed in await cursor.fetchall():
            fact = stops[instance]
            if fact.node != node:
                # An agent speaks for its own node: it ends nobody else's meter.
                self._runtime.log.error("stop from another node", instance=instance, node=node, by=fact.node)
            elif stopped_at is None or fact.stopped_at < stopped_at:
                closed.append(fact)
                changes.append(changed_end(organization, believed, fact.stopped_at))
        if closed:
            await connection.execute(
                _CLOSE, ([f.instance for f in closed], [f.stopped_at for f in closed]), prepare=True
            )
        return changes

    async def _leave_behind(
        self, connection: AsyncConnection[Any], which: LiteralString, *parameters: object
    ) -> list[Changed]:
        cursor = await connection.execute(which, parameters, prepare=True)
        found = await cursor.fetchall()
        if found:
            ends = [instance for instance, *_ in found], [end for *_, end in found]
            await connection.execute(_CLOSE, ends, prepare=True)
        return [changed_end(organization, believed, end) for _, organization, believed, end in found]

    def _check(self, fact: Fact) -> None:
        if fact.rate.currency != self._currency:
            raise InvalidInput(
                f"{fact.instance} is priced in {fact.rate.currency}, wallets are in {self._currency}; "
                "set BERTH_CURRENCY back, then replay this message",
                instance=fact.instance,
            )
        if fact.started_at < self._runtime.clock.now() - OPENING:
            raise InvalidInput(
                f"{fact.instance} is said to run since {fact.started_at} and was never heard of before; "
                f"set the clock of node {fact.node}, then drop this message",
                instance=fact.instance,
                node=fact.node,
            )


def _stopped_at(fact: Fact) -> datetime | None:
    return fact.stopped_at if isinstance(fact, InstanceStopped) else None
