"""Whatever customers want and machines do, in any order: the promises of placement hold after every step."""

import copy
import random
from collections import Counter
from dataclasses import replace
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scheduler import fleet as fleets
from scheduler.feasible import obstacle
from scheduler.fleet import ANY, NOTHING, Fleet, Needs, Node, Room, unmet
from scheduler.plan import Plan, make_plan, recheck
from scheduler.reconcile import Demand, Placed

REGIONS = st.sampled_from(["eu", "eu", "us"])
# Few and coarse, so that what is wanted often only just fits, or only just does not.
CAPACITIES = st.builds(Room, *[st.sampled_from([0, 3, 6, 12])] * 3)
SIZES = st.builds(Room, *[st.sampled_from([1, 3])] * 3)
KEPT = st.sampled_from([NOTHING, NOTHING, Room(3, 3, 3)])
SSD = frozenset({("disk", "ssd")})
LABELS = st.sampled_from([frozenset(), SSD])
NEEDS = st.sampled_from([ANY, ANY, Needs(labels=SSD), Needs(architecture="arm64")])


class Platform(RuleBasedStateMachine):
    """A model of what `place` keeps in its tables, changed by plans only."""

    pack = False

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self.placed: dict[str, list[Placed]] = {}
        self.wanted: dict[str, Demand] = {}
        # As `place` keeps it from batch to batch: never told anything but what has changed.
        self.kept: Fleet = Fleet(pack=self.pack)

    @initialize(
        machines=st.lists(st.tuples(REGIONS, CAPACITIES, KEPT, LABELS), min_size=1, max_size=6),
    )
    def machines(self, machines: list[tuple[str, Room, Room, frozenset[tuple[str, str]]]]) -> None:
        for i, (region, capacity, kept, labels) in enumerate(machines):
            name = f"n{i}"
            self.nodes[name] = Node(
                name,
                region,
                True,
                capacity,
                NOTHING,
                capacity,
                kept=kept,
                labels=labels,
                architecture="amd64",
            )
            self.changed(name)

    def changed(self, name: str) -> None:
        self.kept.put(copy.deepcopy(self.nodes[name]))

    def fleet(self) -> Fleet:
        return Fleet(copy.deepcopy(list(self.nodes.values())), pack=self.pack)

    def a_node(self, data: st.DataObject) -> Node:
        return self.nodes[data.draw(st.sampled_from(sorted(self.nodes)))]

    # --- what machines do ----------------------------------------------------------------------------

    @rule(data=st.data(), online=st.booleans())
    def comes_or_goes(self, data: st.DataObject, online: bool) -> None:
        node = self.a_node(data)
        node.online = online
        self.changed(node.name)

    @rule(data=st.data(), closed=st.sampled_from([None, "disabled", "drained"]))
    def is_opened_or_closed(self, data: st.DataObject, closed: str | None) -> None:
        node = self.a_node(data)
        node.closed, node.draining = closed, closed == "drained"
        self.changed(node.name)

    @rule(data=st.data(), capacity=CAPACITIES, region=REGIONS)
    def changes_its_size(self, data: st.DataObject, capacity: Room, region: str) -> None:
        node = self.a_node(data)
        node.capacity, node.region, node.free = capacity, region, capacity.beyond(node.reserved)
        node.resize(NOTHING, NOTHING)
        self.changed(node.name)

    @rule(data=st.data())
    def a_slot_has_left(self, data: st.DataObject) -> None:
        leaving = [(w, p) for w, placed in sorted(self.placed.items()) for p in placed if p.leaving]
        if leaving:
            workload, gone = data.draw(st.sampled_from(leaving))
            self.leaves(workload, gone)

    def leaves(self, workload: str, gone: Placed) -> None:
        self.placed[workload].remove(gone)
        self.nodes[gone.node].resize(gone.room, NOTHING)
        self.changed(gone.node)

    @rule(data=st.data())
    def a_slot_runs_in_its_new_place(self, data: st.DataObject) -> None:
        relieved = [
            (workload, p)
            for workload, placed in sorted(self.placed.items())
            for p in placed
            if p.relieved_by is not None and self.nodes[p.relieved_by].online
        ]
        if relieved:
            self.is_relieved(*data.draw(st.sampled_from(relieved)))

    def is_relieved(self, workload: str, old: Placed) -> None:
        self.placed[workload].remove(old)
        self.placed[workload].append(replace(old, leaving=True, relieved_by=None))

    # --- what customers want -------------------------------------------------------------------------

    @rule(
        workload=st.sampled_from(["a", "b", "c"]),
        region=REGIONS,
        state=st.sampled_from(["running", "running", "running", "stopped", "deleted"]),
        room=SIZES,
        web=st.integers(0, 4),
        worker=st.integers(0, 2),
        needs=NEEDS,
        lie=st.sampled_from(["", "", "spread", "apart", "bound"]),
        data=st.data(),
    )
    def wants(
        self,
        workload: str,
        region: str,
        state: str,
        room: Room,
        web: int,
        worker: int,
        needs: Needs,
        lie: str,
        data: st.DataObject,
    ) -> None:
        slots = [("web", i) for i in range(web)] + [("worker", i) for i in range(worker)]
        self.wanted[workload] = Demand(
            workload,
            region,
            state,
            room,
            tuple(slots) if state == "running" else (),
            needs,
            spread=lie == "spread",
            apart=lie == "apart",
            bound=self.a_node(data).name if lie == "bound" else None,
        )
        self.carry_out(self.wanted[workload])

    @rule(workload=st.sampled_from(["a", "b", "c"]), more=st.integers(0, 3))
    def is_looked_at_again(self, workload: str, more: int) -> None:
        """As it was, or with more replicas."""
        if workload in self.wanted:
            demand = self.wanted[workload]
            if demand.slots:
                demand = replace(demand, slots=(*demand.slots, *(("more", i) for i in range(more))))
            self.carry_out(demand)

    @rule(data=st.data())
    def is_drained(self, data: st.DataObject) -> None:
        """Everything that has a place elsewhere goes there, and then nothing of it is left here."""
        node = self.a_node(data)
        node.closed, node.draining = "drained", True
        self.changed(node.name)
        # More than once, as it is looked at until all is gone: what one leaves free another one finds.
        for _ in range(3):
            for demand in self.wanted.values():
                self.give_away(demand)
        for workload, placed in self.placed.items():
            demand = self.wanted[workload]
            for here in placed:
                if here.node != node.name or demand.bound is not None or not node.online:
                    continue
                if here.relieved_by is not None:
                    assert not self.nodes[here.relieved_by].online
                    continue
                plan = make_plan(demand, placed, self.fleet())
                assert plan.blocked, "only what has nowhere to go stays on a node that is drained"

    def give_away(self, demand: Demand) -> None:
        self.carry_out(demand)
        for old in [p for p in self.placed[demand.workload] if p.relieved_by is not None]:
            assert old.relieved_by is not None
            if self.nodes[old.relieved_by].online:
                self.is_relieved(demand.workload, old)
        for old in [p for p in self.placed[demand.workload] if p.leaving]:
            self.leaves(demand.workload, old)

    def carry_out(self, demand: Demand) -> None:
        placed = self.placed.setdefault(demand.workload, [])
        before = copy.deepcopy(self.nodes)
        plan = make_plan(demand, placed, self.kept)
        self.is_the_same_for_everybody(plan, placed)
        self.is_complete(plan)
        self.says_why(plan, placed)
        there = {(p.slot, p.node): p.room for p in placed}
        assert recheck(plan, self.nodes, there), "a plan holds on the nodes it was made for"
        assert recheck(plan, {}, there, self.nodes.keys()), "and where nobody has changed them since"
        for name, node in self.nodes.items():
            seen = self.kept.node(name)
            assert seen is not None
            assert (seen.reserved, seen.free) == (node.reserved, node.free), "the batch sees what is taken"
            grown = node.reserved.beyond(before[name].reserved)
            failover = any(put.failover for put in plan.puts if put.node == name)
            assert before[name].fits(grown, failover=failover), "never more than is free"
        kept = {(p.slot, p.node): p for p in placed}
        for removal in plan.removals:
            old = kept[removal.slot, removal.node]
            kept[removal.slot, removal.node] = Placed(old.slot, old.node, old.room, leaving=True)
        for removal in plan.relieved:
            old = kept[removal.slot, removal.node]
            kept[removal.slot, removal.node] = replace(old, relieved_by=plan.slots[removal.slot])
        for put in plan.puts:
            kept[put.slot, put.node] = Placed(put.slot, put.node, put.room)
            if not put.stays:
                for key, old in kept.items():
                    if key[0] == put.slot and key[1] != put.node and old.relieved_by is not None:
                        kept[key] = replace(old, relieved_by=put.node)
        self.placed[demand.workload] = sorted(kept.values(), key=lambda p: (p.slot, p.node))
        staying = [p.node for p in self.placed[demand.workload] if p.relieved_by is not None]
        assert plan.held or sorted(plan.staying) == sorted(staying)
        self.changes_nothing_when_made_again(plan)

    # --- what a plan promises ------------------------------------------------------------------------

    def is_the_same_for_everybody(self, plan: Plan, placed: list[Placed]) -> None:
        shuffled = copy.deepcopy(list(self.nodes.values()))
        random.Random(7).shuffle(shuffled)
        assert make_plan(plan.demand, placed, Fleet(shuffled, pack=self.pack)) == plan

    def is_complete(self, plan: Plan) -> None:
        demand = plan.demand
        missing = [slot for slot in demand.slots if slot not in plan.slots]
        away = [slot for slot, name in plan.slots.items() if not self.nodes[name].online]
        assert bool(missing) <= (plan.blocked is not None)
        assert bool(away) <= (plan.blocked is not None)
        assert bool(missing or away) <= plan.unserved
        if plan.blocked is not None:
            named = set(plan.blocked) - {f"region {demand.region}"}
            of_the_region = {n.name for n in self.nodes.values() if n.region == demand.region}
            assert named == of_the_region or named == {demand.bound}
            assert all(plan.blocked.values())
        if not plan.held:
            assert set(plan.slots) <= set(demand.slots)
            assert all(self.nodes[name].region == demand.region for name in plan.slots.values())
            assert demand.bound is None or set(plan.slots.values()) <= {demand.bound}

    def says_why(self, plan: Plan, placed: list[Placed]) -> None:
        live = {p.slot: p for p in placed if not p.leaving and p.relieved_by is None}
        if plan.held:
            assert not plan.puts
            assert not plan.removals
            assert plan.slots == {slot: p.node for slot, p in live.items()}
            return
        there = {(p.slot, p.node): p for p in placed if not p.leaving}
        for removal in (*plan.removals, *plan.relieved):
            here = there[removal.slot, removal.node]
            node = self.nodes[here.node]
            unwanted = removal.slot not in plan.demand.slots
            elsewhere = node.region != plan.demand.region or plan.demand.bound not in (None, here.node)
            outgrown = here.room != plan.demand.room
            assert removal.because
            unfit = unmet(node, plan.demand.needs) is not None
            assert unwanted or elsewhere or outgrown or unfit or not node.online or node.draining
            assert unwanted or here.relieved_by or plan.slots[removal.slot] != here.node, (
                "nothing is taken away without a new place"
            )
        for removal in plan.relieved:
            assert self.nodes[removal.node].online, "it serves until another does"
        for put in plan.puts:
            node = self.nodes[put.node]
            if not put.stays:
                assert obstacle(node, plan.demand, NOTHING) is None, "it has everything that is needed"
        if plan.demand.apart:
            where = Counter(plan.slots.values())
            fresh = {put.node for put in plan.puts if not put.stays}
            assert all(where[name] == 1 for name in fresh), "never two on one node"

    def changes_nothing_when_made_again(self, plan: Plan) -> None:
        placed = self.placed[plan.demand.workload]
        again = make_plan(plan.demand, placed, self.fleet())
        assert (again.puts, again.removals, again.relieved, again.held) == ((), (), (), plan.held)
        assert again.slots == plan.slots
        assert (again.blocked is None) == (plan.blocked is None)

    @invariant()
    def reservations_are_the_sum_of_the_slots(self) -> None:
        for name, node in self.nodes.items():
            here = [p.room for placed in self.placed.values() for p in placed if p.node == name]
            sums = Room(*(sum(values) for values in zip(*here, strict=True))) if here else NOTHING
            assert node.reserved == sums
            assert node.free == node.capacity.beyond(sums)


class Packed(Platform):
    pack = True


class Sampled(Platform):
    """As if its few nodes were too many to look at each."""

    def __init__(self) -> None:
        super().__init__()
        self._small = patch.multiple(fleets, EXACT=1, SAMPLE=1, BLOCK=2)
        self._small.start()

    def teardown(self) -> None:
        self._small.stop()


MANY = settings(
    max_examples=120, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
for machine in (Platform, Packed, Sampled):
    machine.TestCase.settings = MANY


# Never over capacity, stable, the same for everybody, every removal justified, drained nodes empty.
TestPlatform = Platform.TestCase
TestPacked = Packed.TestCase
TestSampled = Sampled.TestCase
