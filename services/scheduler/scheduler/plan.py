"""PURE. reconcile -> feasible -> rank -> plan: everything that shall change for one workload, as a value.

Invariants: a plan never takes more than is free; every wanted slot stays, is put somewhere, or the plan is
blocked with a reason for every node of the region; a change that would take a running instance away and has
nowhere to put it is held back whole. `place` carries plans out, after `recheck` on locked rows.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from scheduler.feasible import obstacle, obstacles
from scheduler.fleet import NOTHING, Fleet, Node, Room
from scheduler.rank import choose
from scheduler.reconcile import Demand, Placed, Removal, SlotKey, reconcile


@dataclass(frozen=True, slots=True)
class Put:
    """A slot gets a place, or its place another size. `was` is what it has reserved there already."""

    slot: SlotKey
    node: str
    room: Room
    was: Room = NOTHING
    # The slot is at work there: only its size changes, and the node may be away.
    stays: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    demand: Demand
    puts: tuple[Put, ...]
    removals: tuple[Removal, ...]
    # Where the slots are once the plan is carried out.
    slots: Mapping[SlotKey, str]
    # node -> why it takes no more; None when everything wanted has its place.
    blocked: Mapping[str, str] | None = None
    # Nothing changes: the specification in force stays the one before.
    held: bool = False


def make_plan(demand: Demand, placed: Sequence[Placed], fleet: Fleet) -> Plan:
    """What the plan takes is taken from `fleet`, so that the next one of the batch sees it."""
    difference = reconcile(demand, placed, fleet)
    puts: list[Put] = []
    slots: dict[SlotKey, str] = {}
    move = list(difference.move)

    def put(slot: SlotKey, node: Node, was: Room = NOTHING, *, stays: bool = False) -> None:
        fleet.resize(node, was, demand.room)
        puts.append(Put(slot, node.name, demand.room, was, stays))
        slots[slot] = node.name

    for here in difference.keep:
        node = fleet.node(here.node)
        assert node is not None, f"{here.node} was there when the slots were compared"
        if here.room == demand.room:
            slots[here.slot] = here.node
        elif node.fits(demand.room.beyond(here.room)):
            put(here.slot, node, here.room, stays=True)
        else:
            move.append(Removal(here.slot, here.node, "the node has no room for the larger size"))

    moving = sorted(removal.slot for removal in move)
    waiting: list[SlotKey] = []
    for slot in (*moving, *difference.missing):
        if (back := _still_there(slot, demand, difference.leaving, fleet)) is not None:
            put(slot, *back)
        else:
            waiting.append(slot)

    homes = set(slots.values())
    for slot in waiting:
        # Asked again: another slot may have come back smaller, and a slot has one reservation on a node.
        if (back := _still_there(slot, demand, difference.leaving, fleet)) is not None:
            put(slot, *back)
            continue
        if (chosen := choose(fleet, demand, homes)) is not None:
            put(slot, chosen)
            homes.add(chosen.name)
            continue
        if slot in moving:
            live = {here.slot: here for here in placed if not here.leaving}
            blocked = obstacles(fleet, demand, live[slot])
            _undo(puts, fleet)
            return Plan(demand, (), (), {s: here.node for s, here in live.items()}, blocked, held=True)
        # All slots are of one size: where one does not fit, none of the rest does.
        blocked = obstacles(fleet, demand)
        return Plan(demand, tuple(puts), (*difference.remove, *move), slots, blocked)
    return Plan(demand, tuple(puts), (*difference.remove, *move), slots)


def recheck(plan: Plan, nodes: Mapping[str, Node], there: Set[tuple[SlotKey, str]]) -> bool:
    """Whether the plan still holds on these nodes; if so, what it takes is taken from them.

    `there`: the slots of the workload that have something reserved, and where.
    """
    done: list[Put] = []
    for put in plan.puts:
        if not _holds(put, plan.demand.region, nodes, there):
            for undone in done:
                nodes[undone.node].resize(undone.room, undone.was)
            return False
        nodes[put.node].resize(put.was, put.room)
        done.append(put)
    return True


def _holds(put: Put, region: str, nodes: Mapping[str, Node], there: Set[tuple[SlotKey, str]]) -> bool:
    node = nodes.get(put.node)
    if node is None or (put.was != NOTHING and (put.slot, put.node) not in there):
        return False
    needs = put.room.beyond(put.was)
    return node.fits(needs) if put.stays else obstacle(node, region, needs) is None


def _still_there(
    slot: SlotKey, demand: Demand, leaving: Sequence[Placed], fleet: Fleet
) -> tuple[Node, Room] | None:
    """A slot that has not quite left a node goes back to it: its room is still reserved."""
    for here in leaving:
        if here.slot != slot:
            continue
        node = fleet.node(here.node)
        if node and obstacle(node, demand.region, demand.room.beyond(here.room)) is None:
            return node, here.room
    return None


def _undo(puts: Sequence[Put], fleet: Fleet) -> None:
    for put in puts:
        node = fleet.node(put.node)
        assert node is not None, f"{put.node} was there when it was chosen"
        fleet.resize(node, put.room, put.was)
