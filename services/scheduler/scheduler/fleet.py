"""PURE. The nodes as one decision sees them: what is free on each, found by name, by region, by utilization.

Invariant: nothing is taken from a node that is not free there. Taking and giving cost O(log n), so a batch of
decisions never scans a region. Used by `plan`, through `feasible` and `rank`.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from contracts.workload import Limits


class Room(NamedTuple):
    """What an instance takes from a node, or what a node has."""

    cpu_millis: int
    memory_mb: int
    disk_mb: int

    @classmethod
    def of(cls, limits: Limits) -> "Room":
        return cls(limits.cpu_millis, limits.memory_mb, limits.disk_mb)

    def beyond(self, other: "Room") -> "Room":
        """What it takes to grow from `other` to this; never negative."""
        return Room(
            max(0, self.cpu_millis - other.cpu_millis),
            max(0, self.memory_mb - other.memory_mb),
            max(0, self.disk_mb - other.disk_mb),
        )


NOTHING = Room(0, 0, 0)


@dataclass(slots=True, eq=False)
class Node:
    name: str
    region: str
    online: bool
    capacity: Room
    # Promised to placements, whether they run yet or not.
    reserved: Room
    # May be less than capacity - reserved, and is never negative: a machine can shrink under its promises.
    free: Room
    # Measured by the node; it also knows what nobody reserved.
    used: Room = NOTHING
    # How often capacity has come back here, ever: it tells a blocked workload when to look again.
    returned: int = 0

    def fits(self, room: Room) -> bool:
        free = self.free
        return (
            room.cpu_millis <= free.cpu_millis
            and room.memory_mb <= free.memory_mb
            and room.disk_mb <= free.disk_mb
        )

    def utilization(self) -> float:
        """0 idle to about 1 full: the mean over the resources of what is promised and what is really used.

        Promises alone do not see what else runs there; measurements alone are too old for two decisions
        in the same second.
        """
        capacity, reserved, used = self.capacity, self.reserved, self.used
        return (
            (reserved.cpu_millis + used.cpu_millis) / (capacity.cpu_millis or 1)
            + (reserved.memory_mb + used.memory_mb) / (capacity.memory_mb or 1)
            + (reserved.disk_mb + used.disk_mb) / (capacity.disk_mb or 1)
        ) / 6

    def resize(self, old: Room, new: Room) -> None:
        """Replaces a reservation of `old` by one of `new`; whoever lets it grow has asked `fits` before."""
        self.reserved = Room(
            self.reserved.cpu_millis - old.cpu_millis + new.cpu_millis,
            self.reserved.memory_mb - old.memory_mb + new.memory_mb,
            self.reserved.disk_mb - old.disk_mb + new.disk_mb,
        )
        self.free = self.capacity.beyond(self.reserved)


class Fleet:
    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._regions: dict[str, list[Node]] = {}
        for node in self._nodes.values():
            self._regions.setdefault(node.region, []).append(node)
        # One heap of (utilization, name) per region. A changed node is pushed again, its old entry is
        # recognized as stale when it comes up.
        self._heaps: dict[str, list[tuple[float, str]]] = {}

    def node(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def region(self, name: str) -> list[Node]:
        return self._regions.get(name, [])

    def returned(self, region: str) -> int:
        return sum(node.returned for node in self.region(region))

    def resize(self, node: Node, old: Room, new: Room) -> None:
        node.resize(old, new)
        heap = self._heaps.get(node.region)
        if heap is None or not node.online:
            return
        if len(heap) > 2 * len(self._regions[node.region]) + 64:
            del self._heaps[node.region]
        else:
            heapq.heappush(heap, (node.utilization(), node.name))

    def least_utilized(self, region: str, room: Room) -> Node | None:
        """The online node with the lowest utilization that has this room, the first by name among equals."""
        heap = self._heaps.get(region)
        if heap is None:
            heap = [(node.utilization(), node.name) for node in self.region(region) if node.online]
            heapq.heapify(heap)
            self._heaps[region] = heap
        full: list[tuple[float, str]] = []
        found: Node | None = None
        while heap and found is None:
            entry = heap[0]
            node = self._nodes[entry[1]]
            if entry[0] != node.utilization() or (full and full[-1] == entry):
                heapq.heappop(heap)
            elif node.fits(room):
                found = node
            else:
                full.append(heapq.heappop(heap))
        for entry in full:
            heapq.heappush(heap, entry)
        return found
