"""PURE. Whether a node can take an instance, and if not, why, in words a customer understands.

Invariant: a node without an obstacle has room for the instance. Used by `plan` and `rank`.
"""

from scheduler.fleet import Fleet, Node, Room
from scheduler.reconcile import Demand, Placed


def obstacle(node: Node, region: str, room: Room) -> str | None:
    if node.region != region:
        return f"in region {node.region}"
    if not node.online:
        return "offline"
    if node.fits(room):
        return None
    short = room.beyond(node.free)
    words = []
    if short.cpu_millis:
        words.append(f"CPU short by {short.cpu_millis / 1000:g} cores")
    if short.memory_mb:
        words.append(f"memory short by {short.memory_mb} MB")
    if short.disk_mb:
        words.append(f"disk short by {short.disk_mb} MB")
    return ", ".join(words)


def obstacles(fleet: Fleet, demand: Demand, home: Placed | None = None) -> dict[str, str]:
    """For a slot no node takes: why not, node by node. Without any node online the region says so too.

    `home`: where the slot is and only has to grow.
    """
    reasons: dict[str, str] = {}
    nobody = True
    for node in sorted(fleet.region(demand.region), key=lambda node: node.name):
        why = obstacle(node, demand.region, demand.room)
        assert why is not None, f"{node.name} has room for {demand.workload}"
        if home is not None and home.node == node.name:
            why = obstacle(node, demand.region, demand.room.beyond(home.room)) or why
        reasons[node.name] = why
        nobody = nobody and not node.online
    if nobody:
        reasons[f"region {demand.region}"] = "no node is online"
    return reasons
