"""PURE. What a workload wants against what is placed: which slots stay, leave and are missing.

Invariant: every removal says why; slots that are wanted and well placed are never touched. Used by `plan`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from contracts.workload import WorkloadSpec

from scheduler.fleet import ANY, Fleet, Needs, Node, Room, unmet

# A slot as a key that sorts: process and index.
SlotKey: TypeAlias = tuple[str, int]

OFFLINE = "the node is offline"


@dataclass(frozen=True, slots=True)
class Demand:
    """The part of a specification that decides where its instances run."""

    workload: str
    region: str
    state: str
    room: Room
    slots: tuple[SlotKey, ...]
    needs: Needs = ANY
    # Over as many nodes as there are, rather than together; and never two on one node.
    spread: bool = False
    apart: bool = False
    # It has volumes: all of it runs on one node; once they are there, on that one or not at all.
    tied: bool = False
    bound: str | None = None

    @classmethod
    def of(cls, spec: WorkloadSpec, bound: str | None = None) -> "Demand":
        slots = (
            tuple((name, i) for name in sorted(spec.processes) for i in range(spec.processes[name].replicas))
            if spec.wants_instances
            else ()
        )
        wanted = spec.needs
        room = Room.of(spec.limits)
        if spec.volumes:
            # Every instance counts them: too much is reserved for several, never too little for one.
            room = room._replace(disk_mb=room.disk_mb + sum(volume.size_mb for volume in spec.volumes))
        needs = Needs(frozenset(wanted.labels.items()), wanted.runtime, wanted.architecture)
        return cls(
            spec.id,
            spec.region,
            spec.state,
            room,
            slots,
            ANY if needs == ANY else needs,
            wanted.spread,
            wanted.apart,
            bool(spec.volumes),
            bound if spec.volumes else None,
        )


@dataclass(frozen=True, slots=True)
class Placed:
    """A slot on a node, with what is reserved for it there.

    `leaving`: told to go, and counted until the node has said that nothing of it runs any more.
    `relieved_by`: it goes as soon as the slot runs on that node.
    """

    slot: SlotKey
    node: str
    room: Room
    leaving: bool = False
    relieved_by: str | None = None


@dataclass(frozen=True, slots=True)
class Removal:
    slot: SlotKey
    node: str
    because: str


@dataclass(frozen=True, slots=True)
class Difference:
    keep: tuple[Placed, ...] = ()
    remove: tuple[Removal, ...] = ()
    # Wanted, placed, but where they may not stay.
    move: tuple[Removal, ...] = ()
    # Wanted, and their node cannot be heard.
    lost: tuple[Removal, ...] = ()
    # Wanted, at work, and to be at work elsewhere: on a node that stays, or that has what is needed by now.
    drain: tuple[Removal, ...] = ()
    missing: tuple[SlotKey, ...] = ()
    # Wanted, at work, and about to be relieved.
    relieved: tuple[Placed, ...] = ()
    leaving: tuple[Placed, ...] = ()


def reconcile(demand: Demand, placed: Sequence[Placed], fleet: Fleet) -> Difference:
    if not placed:
        return Difference(missing=demand.slots)
    wanted = set(demand.slots)
    keep: list[Placed] = []
    remove: list[Removal] = []
    move: list[Removal] = []
    lost: list[Removal] = []
    drain: list[Removal] = []
    relieved: list[Placed] = []
    for here in placed:
        if here.leaving:
            continue
        if here.slot not in demand.slots:
            because = "fewer replicas are wanted" if demand.slots else f"the workload is {demand.state}"
            remove.append(Removal(here.slot, here.node, because))
            continue
        if here.relieved_by is not None:
            if here.room == demand.room:
                relieved.append(here)
            else:
                remove.append(Removal(here.slot, here.node, "the size has changed, and it is leaving anyway"))
            continue
        wanted.discard(here.slot)
        node = fleet.node(here.node)
        if node is None:
            move.append(Removal(here.slot, here.node, "the node is gone"))
        elif node.region != demand.region:
            move.append(Removal(here.slot, here.node, f"the node is not in region {demand.region}"))
        elif demand.bound not in (None, here.node):
            move.append(Removal(here.slot, here.node, f"the volumes are on {demand.bound}"))
        elif not node.online and demand.bound is None:
            lost.append(Removal(here.slot, here.node, OFFLINE))
        elif demand.bound is None and (why := _unfit(node, demand)) is not None:
            # One of another size is replaced in any case: nothing is gained by keeping it for a while.
            leaves = drain if here.room == demand.room else move
            leaves.append(Removal(here.slot, here.node, why))
        else:
            keep.append(here)
    return Difference(
        keep=tuple(keep),
        remove=tuple(remove),
        move=tuple(move),
        lost=tuple(lost),
        drain=tuple(drain),
        missing=tuple(slot for slot in demand.slots if slot in wanted),
        relieved=tuple(relieved),
        leaving=tuple(here for here in placed if here.leaving),
    )


def _unfit(node: Node, demand: Demand) -> str | None:
    """Why it is to be at work elsewhere, though it could go on here."""
    if node.draining:
        return "the node is being drained"
    missing = unmet(node, demand.needs)
    return None if missing is None else f"{node.name}: {missing}"
