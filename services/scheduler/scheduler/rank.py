"""PURE. Which of the feasible nodes takes an instance.

The node where the workload already runs while it has room, else the one with the lowest utilization; the name
decides between equals, so the same fleet always gives the same answer. Used by `plan`.
"""

from collections.abc import Iterable

from scheduler.feasible import obstacle
from scheduler.fleet import Fleet, Node
from scheduler.reconcile import Demand


def choose(fleet: Fleet, demand: Demand, homes: Iterable[str]) -> Node | None:
    """`homes`: the nodes the workload runs on."""
    best: Node | None = None
    for name in homes:
        node = fleet.node(name)
        if node is None or obstacle(node, demand.region, demand.room) is not None:
            continue
        if best is None or (node.utilization(), node.name) < (best.utilization(), best.name):
            best = node
    return best or fleet.least_utilized(demand.region, demand.room)
