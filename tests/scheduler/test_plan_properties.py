"""Whatever customers want and machines do, in any order: the promises of placement hold after every step."""

import copy
import random
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scheduler.feasible import obstacle
from scheduler.fleet import NOTHING, Fleet, Node, Room
from scheduler.plan import Plan, make_plan, recheck
from scheduler.reconcile import Demand, Placed

REGIONS = st.sampled_from(["eu", "us"])
# Few and coarse, so that what is wanted often only just fits, or only just does not.
CAPACITIES = st.builds(Room, *[st.sampled_from([0, 3, 6, 12])] * 3)
SIZES = st.builds(Room, *[st.sampled_from([1, 3])] * 3)


class Platform(RuleBasedStateMachine):
    """A model of what `place` keeps in its tables, changed by plans only."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self.placed: dict[str, list[Placed]] = {}
        self.wanted: dict[str, Demand] = {}

    @initialize(capacities=st.lists(st.tuples(REGIONS, CAPACITIES), min_size=1, max_size=5))
    def machines(self, capacities: list[tuple[str, Room]]) -> None:
        for i, (region, capacity) in enumerate(capacities):
            self.nodes[f"n{i}"] = Node(f"n{i}", region, True, capacity, NOTHING, capacity)

    # --- what machines do ----------------------------------------------------------------------------

    @rule(data=st.data(), online=st.booleans())
    def comes_or_goes(self, data: st.DataObject, online: bool) -> None:
        self.nodes[data.draw(st.sampled_from(sorted(self.nodes)))].online = online

    @rule(data=st.data(), capacity=CAPACITIES, region=REGIONS)
    def changes_its_size(self, data: st.DataObject, capacity: Room, region: str) -> None:
        node = self.nodes[data.draw(st.sampled_from(sorted(self.nodes)))]
        node.capacity, node.region, node.free = capacity, region, capacity.beyond(node.reserved)

    @rule(data=st.data())
    def a_slot_has_left(self, data: st.DataObject) -> None:
        leaving = [(w, p) for w, placed in sorted(self.placed.items()) for p in placed if p.leaving]
        if leaving:
            workload, gone = data.draw(st.sampled_from(leaving))
            self.placed[workload].remove(gone)
            self.nodes[gone.node].resize(gone.room, NOTHING)

    # --- what customers want -------------------------------------------------------------------------

    @rule(
        workload=st.sampled_from(["a", "b", "c"]),
        region=REGIONS,
        state=st.sampled_from(["running", "running", "running", "stopped", "deleted"]),
        room=SIZES,
        web=st.integers(0, 4),
        worker=st.integers(0, 2),
    )
    def wants(self, workload: str, region: str, state: str, room: Room, web: int, worker: int) -> None:
        slots = [("web", i) for i in range(web)] + [("worker", i) for i in range(worker)]
        demand = Demand(workload, region, state, room, tuple(slots) if state == "running" else ())
        self.wanted[workload] = demand
        self.carry_out(demand)

    @rule(workload=st.sampled_from(["a", "b", "c"]), more=st.integers(0, 3))
    def is_looked_at_again(self, workload: str, more: int) -> None:
        """As it was, or with more replicas."""
        if workload in self.wanted:
            demand = self.wanted[workload]
            if demand.slots:
                demand = replace(demand, slots=(*demand.slots, *(("more", i) for i in range(more))))
            self.carry_out(demand)

    def carry_out(self, demand: Demand) -> None:
        placed = self.placed.setdefault(demand.workload, [])
        before = copy.deepcopy(self.nodes)
        seen = copy.deepcopy(self.nodes)
        plan = make_plan(demand, placed, Fleet(seen.values()))
        self.is_the_same_for_everybody(plan, placed)
        self.is_complete(plan)
        self.says_why(plan, placed)
        there = {(p.slot, p.node) for p in placed}
        assert recheck(plan, self.nodes, there), "a plan holds on the nodes it was made for"
        for name, node in self.nodes.items():
            assert seen[name].reserved == node.reserved, "the batch sees what the plan takes, and no more"
            grown = node.reserved.beyond(before[name].reserved)
            assert before[name].fits(grown), "never more than is free"
        kept = {(p.slot, p.node): p for p in placed}
        for removal in plan.removals:
            old = kept[removal.slot, removal.node]
            kept[removal.slot, removal.node] = Placed(old.slot, old.node, old.room, leaving=True)
        for put in plan.puts:
            kept[put.slot, put.node] = Placed(put.slot, put.node, put.room)
        self.placed[demand.workload] = sorted(kept.values(), key=lambda p: (p.slot, p.node))
        self.changes_nothing_when_made_again(plan)

    # --- what a plan promises ------------------------------------------------------------------------

    def is_the_same_for_everybody(self, plan: Plan, placed: list[Placed]) -> None:
        shuffled = copy.deepcopy(list(self.nodes.values()))
        random.Random(7).shuffle(shuffled)
        assert make_plan(plan.demand, placed, Fleet(shuffled)) == plan

    def is_complete(self, plan: Plan) -> None:
        missing = [slot for slot in plan.demand.slots if slot not in plan.slots]
        assert bool(missing) <= (plan.blocked is not None)
        if plan.blocked is not None:
            of_the_region = {n.name for n in self.nodes.values() if n.region == plan.demand.region}
            assert set(plan.blocked) - {f"region {plan.demand.region}"} == of_the_region
            assert all(plan.blocked.values())
            assert missing or plan.held
        if not plan.held:
            assert set(plan.slots) <= set(plan.demand.slots)
            assert all(self.nodes[name].region == plan.demand.region for name in plan.slots.values())

    def says_why(self, plan: Plan, placed: list[Placed]) -> None:
        live = {p.slot: p for p in placed if not p.leaving}
        if plan.held:
            assert not plan.puts
            assert not plan.removals
            assert plan.slots == {slot: p.node for slot, p in live.items()}
            return
        for removal in plan.removals:
            here = live[removal.slot]
            node = self.nodes[here.node]
            unwanted = removal.slot not in plan.demand.slots
            elsewhere = node.region != plan.demand.region
            outgrown = here.room != plan.demand.room
            assert removal.because
            assert unwanted or elsewhere or outgrown
            assert unwanted or plan.slots[removal.slot] != here.node, (
                "nothing is taken away without a new place"
            )
        for put in plan.puts:
            node = self.nodes[put.node]
            if not put.stays:
                assert obstacle(node, plan.demand.region, NOTHING) is None, "online and in the region"

    def changes_nothing_when_made_again(self, plan: Plan) -> None:
        placed = self.placed[plan.demand.workload]
        again = make_plan(plan.demand, placed, Fleet(copy.deepcopy(list(self.nodes.values()))))
        assert (again.puts, again.removals, again.held) == ((), (), plan.held)
        assert again.slots == plan.slots
        assert (again.blocked is None) == (plan.blocked is None)

    @invariant()
    def reservations_are_the_sum_of_the_slots(self) -> None:
        for name, node in self.nodes.items():
            here = [p.room for placed in self.placed.values() for p in placed if p.node == name]
            sums = Room(*(sum(values) for values in zip(*here, strict=True))) if here else NOTHING
            assert node.reserved == sums
            assert node.free == node.capacity.beyond(sums)


Platform.TestCase.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


# Never over capacity, stable, the same for everybody, every removal justified, nothing forgotten.
TestPlatform = Platform.TestCase
