"""PURE. Where a workload's data goes: which node gets a copy, to which it moves, and which copy it may go on
from.

Invariant: never to the node the data is on, never to one that could not run the workload, and never from a
copy that lacks one of its volumes. Used by `copies`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from contracts.workload import WorkloadSpec

from scheduler.feasible import NAMED, obstacle
from scheduler.fleet import NOTHING, Fleet, Node, Room
from scheduler.reconcile import Demand

# Copies a node gives or takes at a time: each has a part of what it may send.
AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a workload's volumes on a node; without a moment it has yet to come."""

    node: str
    taken_at: datetime | None = None
    volumes: frozenset[str] = frozenset()
    dropping: bool = False
    # Its node does not have it any more.
    missing: bool = False

    @property
    def complete(self) -> bool:
        return self.taken_at is not None and not self.dropping and not self.missing


@dataclass(frozen=True, slots=True)
class Choice:
    node: str | None
    # Without one: node -> why not.
    reasons: Mapping[str, str]


def disk_of(spec: WorkloadSpec) -> int:
    return sum(volume.size_mb for volume in spec.volumes)


def whole_room(demand: Demand, disk_mb: int) -> Room:
    """Of all its instances together; of its data alone, while none are wanted."""
    return demand.room.times(len(demand.slots)) if demand.slots else Room(0, 0, disk_mb)


def copy_due(now: datetime, minutes: int | None, copies: Sequence[Copy], away: Collection[str] = ()) -> bool:
    """`away`: nodes whose copies cannot be counted on."""
    if minutes is None:
        return False
    newest = max(
        (c.taken_at for c in copies if c.complete and c.taken_at and c.node not in away), default=None
    )
    return newest is None or newest + timedelta(minutes=minutes) <= now


def copy_target(fleet: Fleet, demand: Demand, source: str, held: Collection[str], disk_mb: int) -> Choice:
    """One that has a copy already, so that only what is new has to come; else the least utilized, and of
    these first those on which the workload could run as they are."""
    free = replace(demand, bound=None)
    whole = whole_room(demand, disk_mb)

    def why(node: Node) -> str | None:
        # What is there already has its room.
        return obstacle(node, free, NOTHING if node.name in held else Room(0, 0, disk_mb))

    def worth(node: Node) -> tuple[bool, bool, float, str]:
        return node.name not in held, not node.fits(whole, failover=True), node.score, node.name

    return _best(fleet, demand, source, why, worth)


def move_target(
    fleet: Fleet,
    demand: Demand,
    source: str,
    held: Mapping[str, Room],
    disk_mb: int,
    *,
    busy: Collection[str] = (),
) -> Choice:
    """All of its instances run there. `held`: what is reserved on a node for a copy, which becomes the data.
    `busy`: nodes that have enough to do with others' copies."""
    free, whole = replace(demand, bound=None), whole_room(demand, disk_mb)

    def why(node: Node) -> str | None:
        more = whole.beyond(held.get(node.name, NOTHING))
        return obstacle(node, free, more) or ("copies others at the moment" if node.name in busy else None)

    def worth(node: Node) -> tuple[bool, float, str]:
        return node.name not in held, node.score, node.name

    return _best(fleet, demand, source, why, worth)


def _best(
    fleet: Fleet,
    demand: Demand,
    source: str,
    why: Callable[[Node], str | None],
    worth: Callable[[Node], tuple[object, ...]],
) -> Choice:
    reasons: dict[str, str] = {}
    good = []
    for node in fleet.region(demand.region):
        if node.name == source:
            continue
        if (reason := why(node)) is None:
            good.append(node)
        elif len(reasons) < NAMED:
            reasons[node.name] = reason
    if good:
        return Choice(min(good, key=worth).name, {})
    return Choice(None, reasons or {f"region {demand.region}": "there is no other node"})


def failover_choice(
    nodes: Mapping[str, Node],
    demand: Demand,
    spec: WorkloadSpec,
    copies: Sequence[Copy],
    given: Mapping[str, Room],
) -> tuple[Copy | None, Mapping[str, str]]:
    """The newest copy it can go on from, where its own node cannot be heard; else why not, copy by copy.
    `given`: what is reserved on a node for the copy, and goes over to the data."""
    free, whole = replace(demand, bound=None), whole_room(demand, disk_of(spec))
    volumes = {volume.id for volume in spec.volumes}
    reasons: dict[str, str] = {}
    for copy in sorted((c for c in copies if c.complete), key=_age, reverse=True):
        node = nodes.get(copy.node)
        if copy.node == demand.bound or node is None:
            continue
        if missing := volumes - copy.volumes:
            reasons[copy.node] = f"its copy lacks {len(missing)} of the volumes"
            continue
        room = whole.beyond(given.get(copy.node, NOTHING))
        if (why := obstacle(node, free, room, failover=True)) is not None:
            reasons[copy.node] = why
        else:
            return copy, {}
    return None, reasons


def _age(copy: Copy) -> tuple[float, str]:
    return 0.0 if copy.taken_at is None else copy.taken_at.timestamp(), copy.node


def surplus(copies: Sequence[Copy], *, wanted: bool, home: str | None, under_way: str | None) -> list[str]:
    """The nodes whose copies nobody wants: where there is a complete one, all that are older."""
    complete = [c for c in copies if c.complete and c.node not in (home, under_way)]
    kept = {under_way}
    if wanted and complete:
        kept.add(max(complete, key=_age).node)
    elif wanted:
        kept.update(c.node for c in copies if c.node != home)
    return sorted(c.node for c in copies if c.node not in kept and not c.dropping)
