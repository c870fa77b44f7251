"""Gives a workload's data another home, in one transaction: what it runs on, where, and who is told what.

Invariant: a workload has one home, and its number says which; its instances are told to run at the home
alone, and elsewhere to leave; room is reserved before anybody is told. Locks are taken in the order of
`place`: the workload (by the caller), nodes by name, placements, projections. Called by `copies` and `jobs`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from contracts.copies import CopyClaim
from contracts.errors import Conflict
from psycopg import AsyncConnection
from psycopg.types.json import Jsonb

from scheduler.fleet import NOTHING, Room
from scheduler.reconcile import SlotKey

# Of a workload that does not run, a slot that has left keeps the room of its data: most have this one.
_DATA: SlotKey = ("web", 0)

# What has ended there already, and only kept the room of the data.
_FREE_DATA = """
with freed as (
    delete from placement where workload = %s and node = %s and leaving is not null
        and (cpu_millis, memory_mb) = (0, 0) returning disk_mb
)
select coalesce(sum(disk_mb), 0)::bigint from freed
"""

_LOCK = "select name from node where name = any(%s) order by name for no key update"

_FREE = "select free_cpu_millis, free_memory_mb, free_disk_mb from node where name = %s"

# Negative gives back. What has been promised beyond what there is now stays promised.
_RESERVE = """
update node n set
    reserved_cpu_millis = greatest(0, n.reserved_cpu_millis + %(cpu)s),
    reserved_memory_mb = greatest(0, n.reserved_memory_mb + %(memory)s),
    reserved_disk_mb = greatest(0, n.reserved_disk_mb + %(disk)s),
    free_cpu_millis = greatest(0, n.cpu_millis - greatest(0, n.reserved_cpu_millis + %(cpu)s)),
    free_memory_mb = greatest(0, n.memory_mb - greatest(0, n.reserved_memory_mb + %(memory)s)),
    free_disk_mb = greatest(0, n.disk_mb - greatest(0, n.reserved_disk_mb + %(disk)s)),
    returned = n.returned + case when least(%(cpu)s, %(memory)s, %(disk)s) < 0 then 1 else 0 end
where n.name = %(node)s
"""

_LEAVE = """
update placement set leaving = %(revision)s, relieved_by = null
where workload = %(workload)s and node <> all(%(stay)s) and leaving is null
"""

_SEATED = """
select coalesce(sum(cpu_millis), 0)::bigint, coalesce(sum(memory_mb), 0)::bigint,
    coalesce(sum(disk_mb), 0)::bigint
from placement where workload = %s and node = %s
    and (process, index) in (select * from unnest(%s::text[], %s::bigint[]))
"""

_SEAT = """
insert into placement (workload, process, index, node, cpu_millis, memory_mb, disk_mb)
select %(workload)s::text, slot.process, slot.index, %(node)s::text, %(cpu)s::bigint, %(memory)s::bigint,
    %(disk)s::bigint
from unnest(%(processes)s::text[], %(indexes)s::bigint[]) as slot(process, index)
on conflict (workload, process, index, node) do update set
    cpu_millis = excluded.cpu_millis, memory_mb = excluded.memory_mb, disk_mb = excluded.disk_mb,
    leaving = null, relieved_by = null
"""

_RAISE = "update workload set revision = revision + 1 where id = %s returning revision"

# Everybody who was ever told of it hears where it is now.
_TELL = """
insert into projection as known (node, workload, slots, revision)
select told.node, %(workload)s::text, (select count(*) from placement p
    where p.workload = %(workload)s and p.node = told.node and p.leaving is null), %(revision)s::bigint
from (
    select node from projection where workload = %(workload)s
    union select name from node where name = any(%(nodes)s)
) told order by told.node
on conflict (node, workload) do update set
    slots = excluded.slots, revision = excluded.revision, vacant = false
"""

_REMEMBER = """
update workload w set made = array(
    select volume ->> 'id' from jsonb_array_elements(w.in_force -> 'volumes') as volume
    where volume ->> 'id' = any(w.made) or u.volumes -> w.id ? (volume ->> 'id')
)
from node_usage u
where w.id = %s and u.node = w.bound and not w.moving and (w.homed_at is null or w.homed_at < u.at)
"""

_HOME = """
update workload set bound = %(target)s, home = home + 1, claim = %(claim)s, homed_at = %(now)s,
    moving = false, blocked = null,
    blocked_returned = null, due_at = now(), made = %(volumes)s::text[],
    origins = (
        select coalesce(jsonb_object_agg(made.volume, %(source)s::text), '{}')
        from unnest(%(volumes)s::text[]) as made(volume)
    ) || origins
where id = %(workload)s
"""


async def reserve(connection: AsyncConnection[Any], node: str, room: Room) -> None:
    """The node's row is locked."""
    if room != NOTHING:
        sizes = {"cpu": room.cpu_millis, "memory": room.memory_mb, "disk": room.disk_mb}
        await connection.execute(_RESERVE, {"node": node, **sizes}, prepare=True)


def less(room: Room) -> Room:
    return Room(-room.cpu_millis, -room.memory_mb, -room.disk_mb)


async def lock_nodes(connection: AsyncConnection[Any], *names: str) -> None:
    await connection.execute(_LOCK, (sorted(set(names)),), prepare=True)


async def take(connection: AsyncConnection[Any], node: str, room: Room, given: Room = NOTHING) -> None:
    """Reserves what is free, and what of it was `given` back just now; the node's row is locked."""
    row = await (await connection.execute(_FREE, (node,), prepare=True)).fetchone()
    needs = Room(*(a - b for a, b in zip(room, given, strict=True)))
    if row is None or not Room(*row).holds(Room(*(max(0, size) for size in needs))):
        raise Conflict(f"{node} has no room any more", node=node)
    await reserve(connection, node, needs)


async def settle(connection: AsyncConnection[Any], workload: str, node: str, disk_mb: int) -> int:
    """A job is the first that comes to its data: this node is its home, and is told of the workload, so that
    it hears of all that becomes of it: the revision. `disk_mb`: reserved there for the job, and from now on
    for the data."""
    await connection.execute("update workload set bound = %s where id = %s", (node, workload), prepare=True)
    revision = await _raise(connection, workload)
    if disk_mb:
        # A slot that is about to leave may still have its own room there.
        more = await _more(connection, workload, node, [_DATA], Room(0, 0, disk_mb))
        await reserve(connection, node, more._replace(disk_mb=more.disk_mb - disk_mb))
        await _seat(connection, workload, node, [_DATA], Room(0, 0, disk_mb))
        leaving = {"workload": workload, "revision": revision, "stay": []}
        await connection.execute(_LEAVE, leaving, prepare=True)
    await _tell(connection, workload, revision, node)
    return revision


async def leave(connection: AsyncConnection[Any], workload: str, home: str) -> None:
    """Its instances end, so that the last of its data can go; until it is decided where, it is not placed."""
    revision = await _raise(connection, workload)
    await connection.execute(_LEAVE, {"workload": workload, "revision": revision, "stay": []}, prepare=True)
    await _tell(connection, workload, revision, home)
    await connection.execute("update workload set moving = true where id = %s", (workload,), prepare=True)


async def come_back(
    connection: AsyncConnection[Any], workload: str, home: str, slots: Sequence[SlotKey], room: Room
) -> None:
    """It goes on where it was, whatever has become of that node's promises: its data is there."""
    await lock_nodes(connection, home)
    await reserve(connection, home, await _more(connection, workload, home, slots, room))
    await _seat(connection, workload, home, slots, room)
    await _tell(connection, workload, await _raise(connection, workload), home)
    await connection.execute(
        "update workload set moving = false, due_at = now() where id = %s", (workload,), prepare=True
    )


async def go(
    connection: AsyncConnection[Any],
    workload: str,
    *,
    source: str,
    target: str,
    claim: CopyClaim,
    volumes: Sequence[str],
    slots: Sequence[SlotKey],
    room: Room,
    disk_mb: int,
    given: Room,
    now: datetime,
) -> None:
    """Its home is the target, where `given` was reserved for it before. `disk_mb`: of its data, which takes
    it also where nothing runs. Raises Conflict without room."""
    seats, size = (slots, room) if slots else ([_DATA], Room(0, 0, disk_mb))
    await lock_nodes(connection, source, target)
    revision = await _raise(connection, workload)
    leaving = {"workload": workload, "revision": revision, "stay": [target]}
    await connection.execute(_LEAVE, leaving, prepare=True)
    await take(connection, target, await _more(connection, workload, target, seats, size), given)
    await _seat(connection, workload, target, seats, size)
    if not slots:
        await connection.execute(_LEAVE, {**leaving, "stay": []}, prepare=True)
    row = await (await connection.execute(_FREE_DATA, (workload, source), prepare=True)).fetchone()
    assert row is not None, "a sum has a row"
    await reserve(connection, source, Room(0, 0, -row[0]))
    home = {
        "workload": workload,
        "target": target,
        "source": source,
        "claim": Jsonb(claim.model_dump(mode="json")),
        "volumes": list(volumes),
        "now": now,
    }
    await connection.execute(_HOME, home, prepare=True)
    await _tell(connection, workload, revision, source, target)


async def prove(connection: AsyncConnection[Any], workload: str) -> None:
    """It runs at its home: what others have of it is old."""
    await connection.execute("update workload set proven = home where id = %s", (workload,), prepare=True)
    await _tell(connection, workload, await _raise(connection, workload))


async def remember(connection: AsyncConnection[Any], workload: str) -> None:
    """Its home has volumes that it had not when this was looked at last."""
    if (await connection.execute(_REMEMBER, (workload,), prepare=True)).rowcount:
        await _tell(connection, workload, await _raise(connection, workload))


async def _more(
    connection: AsyncConnection[Any], workload: str, node: str, slots: Sequence[SlotKey], room: Room
) -> Room:
    """What its slots take there beyond what is still reserved for them."""
    columns = [process for process, _ in slots], [index for _, index in slots]
    row = await (await connection.execute(_SEATED, (workload, node, *columns), prepare=True)).fetchone()
    assert row is not None, "a sum has a row"
    return Room(*(size * len(slots) - there for size, there in zip(room, row, strict=True)))


async def _seat(
    connection: AsyncConnection[Any], workload: str, node: str, slots: Sequence[SlotKey], room: Room
) -> None:
    if slots:
        seats = {
            "workload": workload,
            "node": node,
            "processes": [process for process, _ in slots],
            "indexes": [index for _, index in slots],
            "cpu": room.cpu_millis,
            "memory": room.memory_mb,
            "disk": room.disk_mb,
        }
        await connection.execute(_SEAT, seats, prepare=True)


async def _raise(connection: AsyncConnection[Any], workload: str) -> int:
    row = await (await connection.execute(_RAISE, (workload,), prepare=True)).fetchone()
    assert row is not None, "the workload is locked"
    return int(row[0])


async def _tell(connection: AsyncConnection[Any], workload: str, revision: int, *nodes: str) -> None:
    told = {"workload": workload, "revision": revision, "nodes": list(nodes)}
    await connection.execute(_TELL, told, prepare=True)
