"""PURE. reconcile -> feasible -> rank -> plan: everything that shall change for one workload, as a value.

Invariants: a plan never takes more than is free; every wanted slot stays, is put somewhere, or the plan is
blocked with reasons; a change that would take a running instance away and has nowhere to put it is held
back whole, while what has lost its node is moved slot by slot. `place` carries plans out, after `recheck` on
locked rows.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from scheduler.feasible import obstacle, obstacles
from scheduler.fleet import NOTHING, Fleet, Node, Room
from scheduler.rank import choose
from scheduler.reconcile import Demand, Placed, Removal, SlotKey, reconcile


@dataclass(slots=True)
class Put:
    """A slot gets a place, or its place another size. `was` is what it has reserved there already."""

    slot: SlotKey
    node: str
    room: Room
    was: Room = NOTHING
    # The slot is at work there: only its size changes, and the node may be away.
    stays: bool = False
    # It has lost its node, and may take of what is kept for that.
    failover: bool = False
    # Another slot, which nobody wants any more: `was` is the room that it has kept for the data.
    instead: SlotKey | None = None


@dataclass(slots=True)
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
    # These go on where they are until their slot runs in its new place.
    relieved: tuple[Removal, ...] = ()
    # The nodes of all such slots, also those of earlier plans.
    staying: tuple[str, ...] = ()
    # Some of what is wanted runs nowhere, or where nobody hears it.
    unserved: bool = False


def make_plan(demand: Demand, placed: Sequence[Placed], fleet: Fleet) -> Plan:
    """What the plan takes is taken from `fleet`, so that the next one of the batch sees it."""
    return _Draft(demand, placed, fleet).plan()


class _Draft:
    __slots__ = ("back", "demand", "fleet", "homes", "placed", "puts", "slots")

    def __init__(self, demand: Demand, placed: Sequence[Placed], fleet: Fleet) -> None:
        self.demand, self.placed, self.fleet = demand, placed, fleet
        self.puts: list[Put] = []
        self.slots: dict[SlotKey, str] = {}
        # Nodes its slots are on, and how many.
        self.homes: dict[str, int] = {}
        # What has not quite left, and may come back to its own room.
        self.back: Sequence[Placed] = ()
        if demand.tied and demand.bound is None:
            self._bind()

    def _bind(self) -> None:
        """All instances share the volumes: one node is chosen for them together."""
        demand = self.demand
        there = sorted(here.node for here in self.placed if not here.leaving)
        if there:
            self.demand = replace(demand, bound=there[0])
        elif demand.slots:
            together = replace(demand, room=demand.room.times(len(demand.slots)))
            node = choose(self.fleet, together, demand.slots[0], {}) or choose(
                self.fleet, demand, demand.slots[0], {}
            )
            if node is not None:
                self.demand = replace(demand, bound=node.name)

    def plan(self) -> Plan:
        demand = self.demand
        found = reconcile(demand, self.placed, self.fleet)
        move = list(found.move)
        if self.placed:
            self.back = (*found.leaving, *found.relieved)
            move += self._keep(found.keep)
            if (held := self._move([removal.slot for removal in move])) is not None:
                return held
        blocked: dict[str, str] | None = None
        removals = [*found.remove, *move]
        unserved = False
        for removal in found.lost:
            if self._place(removal.slot, failover=True):
                removals.append(removal)
            else:
                self._at(removal.slot, removal.node)
                blocked = blocked or self._why(failover=True)
                unserved = True
        missing = self._come_back(found.missing) if self.back else found.missing
        for slot in missing:
            if not self._place(slot):
                # All slots are of one size: where one does not fit, none of the rest does.
                blocked, unserved = self._why(), True
                break
        relieved = []
        for removal in found.drain:
            if self._place(removal.slot):
                relieved.append(removal)
            else:
                self._at(removal.slot, removal.node)
                blocked = blocked or self._why()
        if demand.bound is not None and (there := self.fleet.node(demand.bound)) and not there.online:
            blocked = {demand.bound: "offline, and the volumes are there"} if self.slots else blocked
            unserved = True
        return Plan(
            demand,
            tuple(self.puts),
            tuple(removals),
            self.slots,
            blocked,
            relieved=tuple(relieved),
            staying=(*(here.node for here in found.relieved), *(here.node for here in relieved)),
            unserved=unserved and blocked is not None,
        )

    # --- the steps -----------------------------------------------------------------------------------

    def _keep(self, keep: Sequence[Placed]) -> list[Removal]:
        """Returns what cannot stay because it has grown."""
        outgrown = []
        for here in keep:
            node = self.fleet.node(here.node)
            assert node is not None, f"{here.node} was there when the slots were compared"
            if here.room == self.demand.room:
                self._at(here.slot, here.node)
            elif node.fits(self.demand.room.beyond(here.room)):
                self._put(here.slot, node, here.room, stays=True)
            else:
                outgrown.append(Removal(here.slot, here.node, "the node has no room for the larger size"))
        return outgrown

    def _move(self, moving: list[SlotKey]) -> Plan | None:
        """All or nothing: the plan that holds everything back where one of them has nowhere to go."""
        for slot in self._come_back(sorted(moving)):
            if not self._place(slot):
                live = {p.slot: p for p in self.placed if not p.leaving and p.relieved_by is None}
                homes = self.homes if self.demand.apart else ()
                why = obstacles(self.fleet, self.demand, live[slot], homes=homes)
                for put in self.puts:
                    node = self.fleet.node(put.node)
                    assert node is not None, f"{put.node} was there when it was chosen"
                    self.fleet.resize(node, put.room, put.was)
                where = {s: here.node for s, here in live.items()}
                return Plan(self.demand, (), (), where, why, held=True, unserved=True)
        return None

    def _come_back(self, slots: Sequence[SlotKey]) -> list[SlotKey]:
        """First those whose room is still reserved somewhere; returns the rest."""
        return [slot for slot in slots if not self._return(slot)]

    def _return(self, slot: SlotKey, *, failover: bool = False) -> bool:
        demand = self.demand
        for here in [here for here in self.back if here.slot == slot] or self._data():
            node, needs = self.fleet.node(here.node), demand.room.beyond(here.room)
            if node and obstacle(node, demand, needs, failover=failover, homes=self.homes) is None:
                instead = None if here.slot == slot else here.slot
                self._put(slot, node, here.room, failover=failover, instead=instead)
                if instead is not None:
                    self.back = [other for other in self.back if other is not here]
                return True
        return False

    def _data(self) -> list[Placed]:
        """Its data has room, in the name of a slot there is no more: the first to come takes it over."""
        demand = self.demand
        return [
            here
            for here in self.back
            if here.leaving
            and here.node == demand.bound
            and here.slot not in demand.slots
            and here.room._replace(disk_mb=0) == NOTHING
        ]

    def _place(self, slot: SlotKey, *, failover: bool = False) -> bool:
        # Asked again: another slot may have come back smaller, and a slot has one reservation on a node.
        if self.back and self._return(slot, failover=failover):
            return True
        node = choose(self.fleet, self.demand, slot, self.homes, failover=failover)
        if node is not None:
            self._put(slot, node, failover=failover)
        return node is not None

    def _why(self, *, failover: bool = False) -> dict[str, str]:
        return obstacles(self.fleet, self.demand, failover=failover, homes=self.homes)

    def _put(
        self,
        slot: SlotKey,
        node: Node,
        was: Room = NOTHING,
        *,
        stays: bool = False,
        failover: bool = False,
        instead: SlotKey | None = None,
    ) -> None:
        self.fleet.resize(node, was, self.demand.room)
        self.puts.append(Put(slot, node.name, self.demand.room, was, stays, failover, instead))
        self._at(slot, node.name)

    def _at(self, slot: SlotKey, node: str) -> None:
        self.slots[slot] = node
        self.homes[node] = self.homes.get(node, 0) + 1


def recheck(
    plan: Plan,
    nodes: Mapping[str, Node],
    there: Mapping[tuple[SlotKey, str], Room],
    known: Set[str] = frozenset(),
) -> bool:
    """Whether the plan still holds on these nodes; if so, what it takes is taken from them.

    `there`: the slots of the workload that have something reserved, where, and how much.
    `known`: nodes that are exactly as they were when the plan was made.
    """
    done: list[Put] = []
    for put in plan.puts:
        # What has left meanwhile may have kept a part of it, for its data.
        if put.was is not NOTHING and there.get((put.instead or put.slot, put.node)) != put.was:
            pass
        elif put.node in known:
            continue
        elif _holds(put, plan, nodes):
            nodes[put.node].resize(put.was, put.room)
            done.append(put)
            continue
        for undone in done:
            nodes[undone.node].resize(undone.room, undone.was)
        return False
    return True


def _holds(put: Put, plan: Plan, nodes: Mapping[str, Node]) -> bool:
    node = nodes.get(put.node)
    if node is None:
        return False
    needs = put.room.beyond(put.was)
    if put.stays:
        return node.fits(needs)
    return obstacle(node, plan.demand, needs, failover=put.failover) is None
