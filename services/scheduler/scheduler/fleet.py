"""PURE. The nodes as decisions see them: what is free on each, found by name, and by what a workload needs.

Invariant: nothing is taken from a node that is not free there. A decision looks at a sample of the nodes that
come into question and, where none of it has room, at an index of what is free: it never reads a whole region.
What it compares lies side by side in memory, so ten thousand nodes are looked at as quickly as a hundred.
Used by `plan`, through `feasible` and `rank`; kept from batch to batch by `place`.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from contracts.workload import Limits

# Up to so many nodes all of them are compared; of more, a sample.
EXACT = 32
SAMPLE = 4
BLOCK = 64


class Room(NamedTuple):
    """What an instance takes from a node, or what a node has."""

    cpu_millis: int
    memory_mb: int
    disk_mb: int

    @classmethod
    def of(cls, limits: Limits) -> "Room":
        return cls(limits.reserved_cpu_millis, limits.reserved_memory_mb, limits.disk_mb)

    def beyond(self, other: "Room") -> "Room":
        """What it takes to grow from `other` to this; never negative."""
        cpu, memory, disk = self[0] - other[0], self[1] - other[1], self[2] - other[2]
        return Room(cpu if cpu > 0 else 0, memory if memory > 0 else 0, disk if disk > 0 else 0)

    def times(self, number: int) -> "Room":
        return Room(self[0] * number, self[1] * number, self[2] * number)

    def holds(self, other: "Room") -> bool:
        return other[0] <= self[0] and other[1] <= self[1] and other[2] <= self[2]


NOTHING = Room(0, 0, 0)


class Needs(NamedTuple):
    """What a workload asks of a node besides room; nodes that do not have it never come into question."""

    labels: frozenset[tuple[str, str]] = frozenset()
    runtime: str | None = None
    architecture: str | None = None


ANY = Needs()


@dataclass(slots=True, eq=False)
class Node:
    name: str
    region: str
    online: bool
    # What it gives away, as its administrator limits or oversubscribes it.
    capacity: Room
    # Promised to placements, whether they run yet or not.
    reserved: Room
    # May be less than capacity - reserved, and is never negative: a machine can shrink under its promises.
    free: Room
    # Measured by the node; it also knows what nobody reserved.
    used: Room = NOTHING
    # How often capacity has come back here, ever: it tells a blocked workload when to look again.
    returned: int = 0
    # The part of its capacity that only work which has lost its node may take.
    kept: Room = NOTHING
    # Why it takes no new work.
    closed: str | None = None
    # What runs here shall go elsewhere.
    draining: bool = False
    labels: frozenset[tuple[str, str]] = frozenset()
    # None: it does not say.
    architecture: str | None = None
    runtimes: frozenset[str] = frozenset()
    # Of the row it was read from: whoever finds the same one knows all of this still holds.
    version: str = ""
    score: float = field(init=False, default=0.0)
    open_room: Room = field(init=False, default=NOTHING)
    # Where its fleet keeps its score.
    seat: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self._weigh()

    def room_for(self, *, failover: bool) -> Room:
        return self.free if failover else self.open_room

    def fits(self, room: Room, *, failover: bool = False) -> bool:
        return (self.free if failover else self.open_room).holds(room)

    def resize(self, old: Room, new: Room) -> None:
        """Replaces a reservation of `old` by one of `new`; whoever lets it grow has asked `fits` before."""
        reserved = self.reserved
        self.reserved = Room(
            reserved[0] - old[0] + new[0], reserved[1] - old[1] + new[1], reserved[2] - old[2] + new[2]
        )
        self.free = self.capacity.beyond(self.reserved)
        self._weigh()

    def _weigh(self) -> None:
        """`score`: 0 idle to about 1 full, the mean over the resources of what is promised and what is used.

        Promises alone do not see what else runs there; measurements alone are too old for two decisions
        in the same second.
        """
        capacity, reserved, used = self.capacity, self.reserved, self.used
        self.score = (
            (reserved[0] + used[0]) / (capacity[0] or 1)
            + (reserved[1] + used[1]) / (capacity[1] or 1)
            + (reserved[2] + used[2]) / (capacity[2] or 1)
        ) / 6
        self.open_room = self.free if self.kept is NOTHING else self.free.beyond(self.kept)


class Pool:
    """The nodes that come into question for one kind of need, by name, with the room they have in blocks.

    A block knows at least what each of its nodes has free. It is told at once of what is given back; of what
    is taken it learns when it is looked through in vain.
    """

    def __init__(self, nodes: Iterable[Node], scores: "array[float]", *, failover: bool) -> None:
        self.nodes = sorted(nodes, key=_name)
        self._failover = failover
        # Of the fleet, and where those of these nodes are among them.
        self._scores = scores
        self._seats = array("l", [node.seat for node in self.nodes])
        self._place = {node.name: i for i, node in enumerate(self.nodes)}
        self._most = [self._measure(start) for start in range(0, len(self.nodes), BLOCK)]

    def __contains__(self, node: Node) -> bool:
        return node.name in self._place

    def some(self, seed: int) -> Iterable[Node]:
        """All of a few, a sample of many: the same for the same seed."""
        nodes = self.nodes
        count = len(nodes)
        if count <= EXACT:
            return nodes
        at, step = seed % count, 1 + (seed >> 12) % (count - 1)
        return [nodes[(at + i * step) % count] for i in range(SAMPLE)]

    def idlest(self, room: Room, seed: int) -> Node | None:
        """The one with the lowest score of `some` that have this room, the first of equal ones."""
        nodes, count = self.nodes, len(self.nodes)
        if count > EXACT:
            # Mostly the idlest has room, and then no other node is touched.
            seats, scores = self._seats, self._scores
            at, step = seed % count, 1 + (seed >> 12) % (count - 1)
            best, lowest = at, scores[seats[at]]
            for i in range(1, SAMPLE):
                place = (at + i * step) % count
                score = scores[seats[place]]
                if score < lowest:
                    best, lowest = place, score
            if nodes[best].fits(room, failover=self._failover):
                return nodes[best]
        having = [node for node in self.some(seed) if node.fits(room, failover=self._failover)]
        return min(having, key=_score, default=None)

    def having(self, room: Room, seed: int = 0) -> Iterator[Node]:
        """Those that have this room, block after block from one the seed names."""
        blocks = len(self._most)
        for i in range(blocks):
            block = (seed + i) % blocks
            if not self._most[block].holds(room):
                continue
            start, found = block * BLOCK, False
            for node in self.nodes[start : start + BLOCK]:
                if node.fits(room, failover=self._failover):
                    found = True
                    yield node
            if not found:
                self._most[block] = self._measure(start)

    def grown(self, node: Node) -> None:
        place = self._place.get(node.name)
        if place is not None:
            most, room = self._most[place // BLOCK], node.room_for(failover=self._failover)
            if not most.holds(room):
                self._most[place // BLOCK] = Room(*map(max, most, room))

    def _measure(self, start: int) -> Room:
        rooms = [node.room_for(failover=self._failover) for node in self.nodes[start : start + BLOCK]]
        return Room(*map(max, zip(*rooms, strict=True)))


class Fleet:
    def __init__(self, nodes: Iterable[Node] = (), *, pack: bool = False) -> None:
        # Fills nodes up one by one instead of spreading the load.
        self.pack = pack
        self._nodes: dict[str, Node] = {}
        self._regions: dict[str, dict[str, Node]] = {}
        self._scores = array("d")
        self._free_seats: list[int] = []
        # Made when they are asked for, and forgotten when a node comes, goes or becomes of another kind.
        self._named: dict[str, list[Node]] = {}
        self._pools: dict[tuple[str, Needs, bool], Pool] = {}
        for node in nodes:
            self.put(node)

    def __len__(self) -> int:
        return len(self._nodes)

    def node(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def region(self, name: str) -> Sequence[Node]:
        """By name."""
        named = self._named.get(name)
        if named is None:
            named = self._named[name] = sorted(self._regions.get(name, {}).values(), key=_name)
        return named

    def returned(self, region: str) -> int:
        return sum(node.returned for node in self.region(region))

    # --- what becomes known ----------------------------------------------------------------------------

    def put(self, node: Node) -> None:
        """As it is now; a node known before is brought up to date, and stays the same one."""
        known = self._nodes.get(node.name)
        if known is not None and _kind(known) == _kind(node):
            for name in _CHANGING:
                setattr(known, name, getattr(node, name))
            known._weigh()
            self._scores[known.seat] = known.score
            self._grown(known)
            return
        if known is not None:
            self.drop(known.name)
        self._seat(node)
        self._nodes[node.name] = node
        self._regions.setdefault(node.region, {})[node.name] = node
        self._forget_pools(node.region)

    def drop(self, name: str) -> None:
        node = self._nodes.pop(name, None)
        if node is not None:
            del self._regions[node.region][name]
            self._free_seats.append(node.seat)
            self._forget_pools(node.region)

    def _seat(self, node: Node) -> None:
        if self._free_seats:
            node.seat = self._free_seats.pop()
            self._scores[node.seat] = node.score
        else:
            node.seat = len(self._scores)
            self._scores.append(node.score)

    def _forget_pools(self, region: str) -> None:
        self._named.pop(region, None)
        self._pools = {key: pool for key, pool in self._pools.items() if key[0] != region}

    # --- what is decided ---------------------------------------------------------------------------------

    def resize(self, node: Node, old: Room, new: Room) -> None:
        node.resize(old, new)
        self._scores[node.seat] = node.score
        if not new.holds(old):
            self._grown(node)

    def _grown(self, node: Node) -> None:
        for (region, _, _), pool in self._pools.items():
            if region == node.region:
                pool.grown(node)

    def pool(self, region: str, needs: Needs, *, failover: bool) -> Pool:
        key = region, needs, failover
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = Pool(
                (n for n in self.region(region) if n.online and n.closed is None and unmet(n, needs) is None),
                self._scores,
                failover=failover,
            )
        return pool


def unmet(node: Node, needs: Needs) -> str | None:
    """What the node does not have, in words."""
    if needs is ANY:
        return None
    missing = sorted(needs.labels - node.labels)
    if missing:
        return "has no label " + ", ".join(f"{key}={value}" for key, value in missing)
    if needs.runtime is not None and needs.runtime not in node.runtimes:
        return f"its engine has no runtime {needs.runtime}"
    if None not in (needs.architecture, node.architecture) and needs.architecture != node.architecture:
        return f"it is {node.architecture}, the image is for {needs.architecture}"
    return None


_CHANGING = ("capacity", "reserved", "free", "used", "returned", "kept", "draining", "version")


def _kind(node: Node) -> tuple[object, ...]:
    """All that decides which pools it is in."""
    return node.region, node.online, node.closed, node.labels, node.architecture, node.runtimes


def _name(node: Node) -> str:
    return node.name


def _score(node: Node) -> float:
    return node.score
