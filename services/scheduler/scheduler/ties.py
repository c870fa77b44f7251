"""What ties a job to a node: the data of its workload.

Invariant: a job with volumes is placed where these are and nowhere else; where they are nowhere yet, its
node becomes their home. Whoever has asked for a tie has its workload locked, so the data stays where it is.
Called by `jobs`.
"""

from dataclasses import dataclass, replace
from typing import Any

from contracts.workload import WorkloadSpec
from psycopg import AsyncConnection

from scheduler import rehome
from scheduler.feasible import NAMED, obstacle
from scheduler.fleet import Room
from scheduler.homing import disk_of, whole_room
from scheduler.reconcile import Demand
from scheduler.roster import first_of, one

_LOCK = "select id from workload where id = %s for no key update"

_DATA = """
select w.in_force::text, w.in_force ->> 'generation', w.generation, w.due_at is null, w.bound, w.home,
    w.moving, exists (select from placement p where p.workload = w.id and p.node = w.bound)
from workload w where w.id = %s
"""

_TOLD = "select revision from projection where workload = %s and node = %s"


@dataclass(frozen=True, slots=True)
class Tie:
    # What the job takes from a node.
    room: Room
    # It has volumes; they are on this node, or nowhere yet.
    tied: bool = False
    bound: str | None = None
    home: int = 0
    # Of that room, what stays when the job has ended: it is the first that comes to the volumes.
    data_mb: int = 0
    # What a node should have where the volumes are nowhere yet: all instances are to follow the job there.
    whole: Room | None = None
    # Why it is not placed now, wherever there is room.
    waits: str | None = None


async def tie_of(connection: AsyncConnection[Any], spec: WorkloadSpec) -> Tie:
    room = Room.of(spec.limits)
    if not spec.volumes:
        return Tie(room)
    await connection.execute(_LOCK, (spec.id,), prepare=True)
    row = await (await connection.execute(_DATA, (spec.id,), prepare=True)).fetchone()
    if row is None or row[0] is None:
        return Tie(room, waits="its volumes are not known yet")
    text, in_force, generation, idle, bound, home, moving, placed = row
    if int(in_force) < spec.generation and (generation < spec.generation or not idle):
        return Tie(room, waits="a change of the app is not placed yet")
    known = WorkloadSpec.model_validate_json(text)
    if known.state == "deleted":
        return Tie(room, waits="the app was deleted")
    if not known.volumes:
        return Tie(room)
    if moving:
        return Tie(room, True, bound, home, waits="its data is on its way to another node")
    demand = Demand.of(known.model_copy(update={"state": "running", "image": spec.image}))
    # The room of its volumes is counted by the instances that are placed beside it, and by it where none is.
    taken = room if placed else room._replace(disk_mb=room.disk_mb + disk_of(known))
    if bound is not None:
        return Tie(taken, True, bound, home)
    data_mb = 0 if placed else disk_of(known)
    return Tie(
        taken,
        True,
        home=home,
        data_mb=data_mb,
        whole=Room(*map(max, taken, whole_room(demand, disk_of(known)))),
    )


async def hold(connection: AsyncConnection[Any], spec: WorkloadSpec, tie: Tie, node: str) -> int:
    """The job is placed there. The revision of its workload that the node has to know before it begins."""
    row = await (await connection.execute(_TOLD, (spec.id, node), prepare=True)).fetchone()
    if tie.bound is None or row is None:
        return await rehome.settle(connection, spec.id, node, tie.data_mb)
    return int(row[0])


async def why_not(connection: AsyncConnection[Any], spec: WorkloadSpec, tie: Tie) -> dict[str, str]:
    """Node by node."""
    if tie.waits is not None:
        return {tie.bound or f"region {spec.region}": tie.waits}
    demand = replace(Demand.of(spec, tie.bound), room=tie.room, apart=False)
    if tie.bound is not None:
        # The others are not asked: they do not have its data.
        home = await one(connection, tie.bound)
        if home is None or not home.online:
            return {tie.bound: "offline, and the volumes are there"}
        # Closed to what could go elsewhere.
        found = obstacle(replace(home, closed=None), demand, demand.room)
        return {} if found is None else {tie.bound: found}
    reasons = {}
    for node in await first_of(connection, demand.region, NAMED):
        why = obstacle(node, demand, demand.room)
        if why is not None:
            reasons[node.name] = why
    return reasons
