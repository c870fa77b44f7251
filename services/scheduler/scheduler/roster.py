"""The fleet kept in memory, and how it stays what the table of nodes says.

Before each batch the rows that others have changed since the last one are read, and only those. A row is
known by the transaction that wrote it: where the lock finds the same one, a plan made on it holds as it is.
What is not certain is forgotten and read again, so memory can be wrong about a node but never act on it.

While one batch is written the next one is planned: the nodes that the first has locked are then ahead of the
rows that can be read, and stay as they are remembered. Used by `place`.
"""

import gc
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection

from scheduler.fleet import NOTHING, Fleet, Node, Room

_COLUMNS = """
n.name, n.region, n.status = 'online', n.cpu_millis, n.memory_mb, n.disk_mb,
n.reserved_cpu_millis, n.reserved_memory_mb, n.reserved_disk_mb,
n.free_cpu_millis, n.free_memory_mb, n.free_disk_mb,
n.used_cpu_millis, n.used_memory_mb, n.used_disk_mb, n.returned,
n.reserve, n.disabled, n.draining, n.trusted_at is not null, n.engine_away,
case when n.labels <> '{}' then n.labels end,
n.architecture, case when n.runtimes <> '{}' then n.runtimes end, n.xmin::text
"""

_SNAPSHOT = "select pg_snapshot_xmin(pg_current_snapshot())::text, count(*) from node"

_ALL = f"select {_COLUMNS} from node n"

# What a snapshot that old could not see; what we have written ourselves since is known already.
_CHANGED = f"""
select {_COLUMNS} from node n
where (age(n.xmin) <= age(%s::text::xid8::xid) and n.xmin <> all(%s::text[]::xid[])) or n.name = any(%s)
"""

# Only what is not as it was known comes back; all of them are locked.
_LOCK = f"""
with known as (
    select * from unnest(%s::text[], %s::text[]) as known(name, version)
), n as materialized (
    select *, xmin from node where name = any(%s) order by name for no key update
)
select {_COLUMNS.replace("n.name", "known.name", 1)} from known left join n on n.name = known.name
where n.xmin::text is distinct from known.version
"""

_FIRST = f"select {_COLUMNS} from node n where n.region = %s order by n.name limit %s"

_ONE = f"select {_COLUMNS} from node n where n.name = %s"

_OURS = "select pg_current_xact_id()::xid::text"


_NONE: frozenset[tuple[str, str]] = frozenset()


MANY = 1000
# Transactions of ours that a snapshot may not have seen: one that writes while the next one is planned.
RECENT = 8


class Roster:
    def __init__(self, *, pack: bool) -> None:
        self._pack = pack
        # What the transaction that writes has locked; and of that, what is as it is remembered.
        self._locked: set[str] = set()
        self._held: set[str] = set()
        self.forget_all()

    def forget_all(self) -> None:
        self.fleet = Fleet(pack=self._pack)
        self._snapshot: str | None = None
        # Transactions of ours, whose effect on the nodes is known.
        self._ours: deque[str] = deque(maxlen=RECENT)
        self._doubtful: set[str] = set()
        self._held = set()

    def doubt(self, names: Iterable[str]) -> None:
        """What is remembered of these may not be so."""
        doubtful = set(names)
        self._doubtful |= doubtful
        self._held = self._held - doubtful

    async def refresh(self, connection: AsyncConnection[Any]) -> Fleet:
        """The fleet as it is: read whole the first time, and where nodes are gone."""
        cursor = await connection.execute(_SNAPSHOT, prepare=True)
        row = await cursor.fetchone()
        assert row is not None, "an aggregate has a row"
        snapshot, count = row
        if self._snapshot is not None:
            doubtful, self._doubtful = self._doubtful, set()
            parameters = self._snapshot, list(self._ours), list(doubtful)
            cursor = await connection.execute(_CHANGED, parameters, prepare=True)
            self._take(await cursor.fetchall())
        if self._snapshot is None or len(self.fleet) != count:
            self.forget_all()
            self._take(await (await connection.execute(_ALL, prepare=True)).fetchall())
            if len(self.fleet) > MANY:
                # It stays: the collector need not go through all of it again and again.
                gc.unfreeze()
                gc.collect()
                gc.freeze()
        self._snapshot = snapshot
        return self.fleet

    async def lock(self, connection: AsyncConnection[Any], names: Iterable[str]) -> dict[str, Node | None]:
        """Nobody else can change these any more; returns those that are not as they are remembered, none for
        one that is gone. One transaction at a time, until `committed`."""
        chosen = sorted(set(names))
        found = [None if name in self._doubtful else self.fleet.node(name) for name in chosen]
        known = [None if node is None else node.version for node in found]
        cursor = await connection.execute(_LOCK, (chosen, known, chosen), prepare=False)
        rows = await cursor.fetchall()
        self._held, self._locked = set(chosen), set(chosen)
        self.doubt(row[0] for row in rows)
        return {row[0]: None if row[1] is None else _node(row) for row in rows}

    async def writing(self, connection: AsyncConnection[Any]) -> None:
        """What is locked is about to be changed, to what is remembered of it."""
        row = await (await connection.execute(_OURS, prepare=True)).fetchone()
        assert row is not None, "a function has a value"
        self._ours.append(row[0])
        for name in self._held:
            node = self.fleet.node(name)
            if node is not None:
                node.version = row[0]

    def committed(self) -> None:
        # Whoever has read these meanwhile has read what they were before.
        self.doubt(self._locked - self._held)
        self._held, self._locked = set(), set()

    def _take(self, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            if row[0] not in self._held:
                self.fleet.put(_node(row))


async def first_of(connection: AsyncConnection[Any], region: str, number: int) -> list[Node]:
    """By name: enough to say why none of them takes something."""
    rows = await (await connection.execute(_FIRST, (region, number))).fetchall()
    return [_node(row) for row in rows]


async def one(connection: AsyncConnection[Any], name: str) -> Node | None:
    row = await (await connection.execute(_ONE, (name,))).fetchone()
    return None if row is None else _node(row)


def _node(row: Sequence[Any]) -> Node:
    name, region, online, *numbers, returned, reserve, disabled, draining, resting, away = row[:21]
    labels, architecture, runtimes, version = row[21:]
    capacity, reserved, free, used = (Room(*numbers[i : i + 3]) for i in (0, 3, 6, 9))
    return Node(
        name,
        region,
        online,
        capacity,
        reserved,
        free,
        used,
        returned,
        kept=Room(*(int(size * reserve) for size in capacity)) if reserve else NOTHING,
        closed=_closed(disabled, draining, resting, away),
        draining=draining,
        labels=_pairs(labels),
        architecture=architecture,
        runtimes=frozenset(runtimes or ()),
        version=version,
    )


def _pairs(labels: Mapping[str, str] | None) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items()) if labels else _NONE


def _closed(disabled: bool, draining: bool, resting: bool, away: bool) -> str | None:
    if draining:
        return "being drained"
    if disabled:
        return "disabled by its administrator"
    if away:
        return "its container engine does not answer"
    return "has been offline again and again, and rests" if resting else None
