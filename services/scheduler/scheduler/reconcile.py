"""PURE. What a workload wants against what is placed: which slots stay, leave and are missing.

Invariant: every removal says why; slots that are wanted and well placed are never touched. Used by `plan`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from contracts.workload import WorkloadSpec

from scheduler.fleet import Fleet, Room

# A slot as a key that sorts: process and index.
SlotKey: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Demand:
    """The part of a specification that decides where its instances run."""

    workload: str
    region: str
    state: str
    room: Room
    slots: tuple[SlotKey, ...]

    @classmethod
    def of(cls, spec: WorkloadSpec) -> "Demand":
        slots = (
            tuple((name, i) for name in sorted(spec.processes) for i in range(spec.processes[name].replicas))
            if spec.wants_instances
            else ()
        )
        return cls(spec.id, spec.region, spec.state, Room.of(spec.limits), slots)


@dataclass(frozen=True, slots=True)
class Placed:
    """A slot on a node, with what is reserved for it there.

    `leaving`: told to go, and counted until the node has said that nothing of it runs any more.
    """

    slot: SlotKey
    node: str
    room: Room
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Removal:
    slot: SlotKey
    node: str
    because: str


@dataclass(frozen=True, slots=True)
class Difference:
    keep: tuple[Placed, ...]
    remove: tuple[Removal, ...]
    # Wanted, placed, but where they may not stay.
    move: tuple[Removal, ...]
    missing: tuple[SlotKey, ...]
    leaving: tuple[Placed, ...]


def reconcile(demand: Demand, placed: Sequence[Placed], fleet: Fleet) -> Difference:
    wanted = set(demand.slots)
    keep: list[Placed] = []
    remove: list[Removal] = []
    move: list[Removal] = []
    for here in placed:
        if here.leaving:
            continue
        node = fleet.node(here.node)
        if here.slot not in wanted:
            because = "fewer replicas are wanted" if demand.slots else f"the workload is {demand.state}"
            remove.append(Removal(here.slot, here.node, because))
            continue
        wanted.discard(here.slot)
        if node is None:
            move.append(Removal(here.slot, here.node, "the node is gone"))
        elif node.region != demand.region:
            move.append(Removal(here.slot, here.node, f"the node is not in region {demand.region}"))
        else:
            keep.append(here)
    return Difference(
        keep=tuple(keep),
        remove=tuple(remove),
        move=tuple(move),
        missing=tuple(slot for slot in demand.slots if slot in wanted),
        leaving=tuple(here for here in placed if here.leaving),
    )
