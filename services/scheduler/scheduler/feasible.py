"""PURE. Whether a node can take an instance, and if not, why, in words a customer understands.

Invariant: a node without an obstacle has room for the instance and everything it needs. Used by `plan` and
`rank`.
"""

from collections.abc import Collection

from scheduler.fleet import Fleet, Node, Room, unmet
from scheduler.reconcile import Demand, Placed

# Nodes named to a customer; a region may have thousands.
NAMED = 20


def obstacle(
    node: Node, demand: Demand, room: Room, *, failover: bool = False, homes: Collection[str] = ()
) -> str | None:
    """Why the node does not take `room` of the workload. `homes`: the nodes it already runs on."""
    if node.region != demand.region:
        return f"in region {node.region}"
    if not node.online:
        return "offline"
    # Closed to new work, which what has its data there is not.
    if node.closed is not None and (node.draining or demand.bound != node.name):
        return node.closed
    if (missing := unmet(node, demand.needs)) is not None:
        return missing
    if demand.bound is not None and demand.bound != node.name:
        return f"its volumes are on {demand.bound}"
    if demand.apart and node.name in homes:
        return "runs another replica, and they are to be apart"
    return None if node.fits(room, failover=failover) else _short(node, room, failover)


def _short(node: Node, room: Room, failover: bool) -> str:
    short = room.beyond(node.room_for(failover=failover))
    words = []
    if short.cpu_millis:
        words.append(f"CPU short by {short.cpu_millis / 1000:g} cores")
    if short.memory_mb:
        words.append(f"memory short by {short.memory_mb} MB")
    if short.disk_mb:
        words.append(f"disk short by {short.disk_mb} MB")
    kept = " beside the reserve for failover" if not failover and node.free.holds(room) else ""
    return ", ".join(words) + kept


def obstacles(
    fleet: Fleet,
    demand: Demand,
    home: Placed | None = None,
    *,
    failover: bool = False,
    homes: Collection[str] = (),
) -> dict[str, str]:
    """For a slot no node takes: why not, node by node. Without any node online the region says so too.

    `home`: where the slot is and only has to grow.
    """
    reasons: dict[str, str] = {}
    nodes = fleet.region(demand.region)
    nobody = not any(node.online for node in nodes)
    if demand.bound is not None and (there := fleet.node(demand.bound)) is not None:
        # The others are not asked: they do not have its data.
        nodes = [there]
    for node in nodes[:NAMED]:
        why = obstacle(node, demand, demand.room, failover=failover, homes=homes)
        if home is not None and home.node == node.name:
            why = obstacle(node, demand, demand.room.beyond(home.room), failover=failover) or why
        assert why is not None, f"{node.name} has room for {demand.workload}"
        reasons[node.name] = why
    if len(nodes) > NAMED:
        reasons[f"{len(nodes) - NAMED} more nodes"] = "none of them takes it"
    if nobody:
        reasons[f"region {demand.region}"] = "no node is online"
    return reasons
