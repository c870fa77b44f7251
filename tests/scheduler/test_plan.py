"""Placement as tables: what stays, what leaves and why, where the rest goes, and why it does not."""

import random
from dataclasses import replace
from typing import Any

import pytest
from contracts.ids import new_id
from contracts.workload import Process, Volume
from scheduler.fleet import ANY, NOTHING, Fleet, Needs, Node, Room
from scheduler.plan import Plan, Put, make_plan, recheck
from scheduler.reconcile import Demand, Placed, Removal

from tests.scheduler.samples import spec

SMALL = Room(100, 128, 256)
WHOLE = Room(1000, 1024, 4096)
WEB = ("web", 0)
WEB2 = ("web", 1)
WEB3 = ("web", 2)


def node(
    name: str = "n1",
    *,
    region: str = "eu",
    online: bool = True,
    capacity: Room = WHOLE,
    reserved: Room = NOTHING,
    used: Room = NOTHING,
) -> Node:
    return Node(name, region, online, capacity, reserved, capacity.beyond(reserved), used)


def demand(*slots: tuple[str, int], state: str = "running", region: str = "eu", room: Room = SMALL) -> Demand:
    return Demand("app", region, state, room, slots)


def nodes_of(plan: Plan) -> list[str]:
    return [plan.slots[slot] for slot in plan.demand.slots if slot in plan.slots]


# --- what is wanted ----------------------------------------------------------------------------------


def test_a_specification_wants_a_slot_for_every_replica_of_every_process() -> None:
    processes = {"worker": Process(replicas=2), "web": Process(replicas=1), "idle": Process(replicas=0)}
    assert Demand.of(spec(processes=processes)).slots == (("web", 0), ("worker", 0), ("worker", 1))


@pytest.mark.parametrize("change", [{"state": "stopped"}, {"state": "deleted"}, {"image": None}])
def test_without_an_image_or_stopped_nothing_is_wanted(change: dict[str, str | None]) -> None:
    assert Demand.of(spec(**change)).slots == ()


# --- what stays and what leaves ----------------------------------------------------------------------


def test_what_is_well_placed_is_not_touched() -> None:
    fleet = Fleet([node(reserved=Room(900, 900, 900)), node("n2")])
    plan = make_plan(demand(WEB), [Placed(WEB, "n1", SMALL)], fleet)
    assert plan == Plan(demand(WEB), (), (), {WEB: "n1"})


@pytest.mark.parametrize(
    ("wanted", "because"),
    [
        (demand(WEB), "fewer replicas are wanted"),
        (demand(state="stopped"), "the workload is stopped"),
        (demand(state="deleted"), "the workload is deleted"),
    ],
)
def test_what_is_not_wanted_leaves_and_the_plan_says_why(wanted: Demand, because: str) -> None:
    fleet = Fleet([node(reserved=Room(200, 256, 512))])
    placed = [Placed(WEB, "n1", SMALL), Placed(WEB2, "n1", SMALL)]
    plan = make_plan(wanted, placed, fleet)
    assert plan.puts == ()
    assert plan.removals[-1] == Removal(WEB2, "n1", because)
    assert len(plan.removals) == 2 - len(wanted.slots)


def test_a_slot_of_another_region_moves() -> None:
    fleet = Fleet([node("us1", region="us", reserved=SMALL), node("n1")])
    plan = make_plan(demand(WEB), [Placed(WEB, "us1", SMALL)], fleet)
    assert plan.puts == (Put(WEB, "n1", SMALL),)
    assert plan.removals == (Removal(WEB, "us1", "the node is not in region eu"),)


def test_a_slot_that_has_not_quite_left_comes_back_to_its_own_room() -> None:
    full = node(capacity=SMALL, reserved=SMALL)
    plan = make_plan(demand(WEB), [Placed(WEB, "n1", SMALL, leaving=True)], Fleet([full, node("n2")]))
    assert plan.puts == (Put(WEB, "n1", SMALL, was=SMALL),)
    assert full.reserved == SMALL


def test_slots_that_come_back_smaller_make_room_for_each_other() -> None:
    home = node(capacity=Room(200, 1000, 512), reserved=Room(200, 1000, 512))
    leaving = [Placed(WEB, "n1", Room(100, 10, 256), True), Placed(WEB2, "n1", Room(100, 990, 256), True)]
    plan = make_plan(demand(WEB, WEB2, room=Room(100, 20, 256)), leaving, Fleet([home]))
    assert plan.slots == {WEB: "n1", WEB2: "n1"}
    assert {put.was for put in plan.puts} == {here.room for here in leaving}
    assert home.reserved == Room(200, 40, 512)


# --- larger and smaller ------------------------------------------------------------------------------


def test_a_larger_size_is_taken_where_the_slot_is() -> None:
    home = node(reserved=SMALL)
    large = Room(400, 512, 256)
    plan = make_plan(demand(WEB, room=large), [Placed(WEB, "n1", SMALL)], Fleet([home, node("n2")]))
    assert plan.puts == (Put(WEB, "n1", large, SMALL, stays=True),)
    assert home.reserved == large


def test_a_slot_that_outgrows_its_node_moves() -> None:
    large = Room(100, 1000, 256)
    fleet = Fleet([node(reserved=Room(200, 256, 512)), node("n2")])
    plan = make_plan(demand(WEB, room=large), [Placed(WEB, "n1", SMALL)], fleet)
    assert plan.puts == (Put(WEB, "n2", large),)
    assert plan.removals == (Removal(WEB, "n1", "the node has no room for the larger size"),)


def test_a_change_that_would_only_take_away_what_runs_is_held_back_whole() -> None:
    home = node(reserved=Room(200, 256, 512))
    placed = [Placed(WEB, "n1", SMALL), Placed(WEB2, "n1", SMALL)]
    plan = make_plan(demand(WEB, room=Room(100, 2000, 256)), placed, Fleet([home]))
    assert plan.held
    assert (plan.puts, plan.removals) == ((), ())
    assert plan.slots == {WEB: "n1", WEB2: "n1"}
    assert plan.blocked == {"n1": "memory short by 1104 MB"}
    assert home.reserved == Room(200, 256, 512)


def test_held_back_after_part_of_it_fitted_gives_that_part_back() -> None:
    roomy, tight = node(reserved=SMALL), node("n2", capacity=SMALL, reserved=SMALL)
    placed = [Placed(WEB, "n1", SMALL), Placed(WEB2, "n2", SMALL)]
    plan = make_plan(demand(WEB, WEB2, room=Room(600, 128, 256)), placed, Fleet([roomy, tight]))
    assert plan.held
    assert (roomy.reserved, tight.reserved) == (SMALL, SMALL)


# --- where the rest goes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fleet", "chosen"),
    [
        ([node("n1", reserved=Room(500, 512, 0)), node("n2", reserved=Room(100, 128, 0))], "n2"),
        ([node("n1", used=Room(500, 900, 0)), node("n2", used=Room(400, 100, 0))], "n2"),
        ([node("n2"), node("n1")], "n1"),
        ([node("n1", online=False), node("n2", reserved=Room(500, 512, 0))], "n2"),
        ([node("n1", region="us"), node("n2", reserved=Room(500, 512, 0))], "n2"),
        ([node("n1", capacity=Room(1000, 100, 4096)), node("n2", reserved=Room(800, 800, 0))], "n2"),
    ],
    ids=["least promised", "least used", "first by name", "online", "in the region", "with room"],
)
def test_the_least_utilized_node_with_room_takes_a_new_workload(fleet: list[Node], chosen: str) -> None:
    assert nodes_of(make_plan(demand(WEB), [], Fleet(fleet))) == [chosen]


def test_replicas_go_where_the_workload_runs_while_there_is_room() -> None:
    home = node("n2", reserved=Room(700, 128, 256))
    fleet = Fleet([node("n1"), home])
    plan = make_plan(demand(WEB, WEB2, WEB3, ("web", 3)), [Placed(WEB, "n2", SMALL)], fleet)
    assert nodes_of(plan) == ["n2", "n2", "n2", "n2"]
    more = demand(*(("web", i) for i in range(6)))
    placed = [Placed(slot, name, SMALL) for slot, name in plan.slots.items()]
    assert nodes_of(make_plan(more, placed, fleet)) == ["n2", "n2", "n2", "n2", "n1", "n1"]


def test_workloads_of_one_batch_see_what_the_others_take() -> None:
    fleet = Fleet([node("n1"), node("n2"), node("n3")])
    chosen = [nodes_of(make_plan(demand(WEB), [], fleet))[0] for _ in range(6)]
    assert chosen == ["n1", "n2", "n3", "n1", "n2", "n3"]


# --- why it does not go ------------------------------------------------------------------------------


def test_blocked_says_why_for_every_node_of_the_region() -> None:
    fleet = Fleet(
        [
            node("full", reserved=WHOLE),
            node("tight", reserved=Room(0, 1024 - 72, 0)),
            node("away", online=False),
            node("elsewhere", region="us"),
        ]
    )
    plan = make_plan(demand(WEB), [], fleet)
    assert plan.blocked == {
        "away": "offline",
        "full": "CPU short by 0.1 cores, memory short by 128 MB, disk short by 256 MB",
        "tight": "memory short by 56 MB",
    }
    assert (plan.puts, plan.slots, plan.held) == ((), {}, False)


@pytest.mark.parametrize(
    ("nodes", "reasons"),
    [
        ([], {"region eu": "no node is online"}),
        ([node(online=False)], {"n1": "offline", "region eu": "no node is online"}),
    ],
)
def test_a_region_without_a_node_online_says_so(nodes: list[Node], reasons: dict[str, str]) -> None:
    assert make_plan(demand(WEB), [], Fleet(nodes)).blocked == reasons


def test_what_fits_is_placed_and_only_the_rest_waits() -> None:
    plan = make_plan(demand(WEB, WEB2, WEB3), [], Fleet([node(capacity=Room(1000, 300, 4096))]))
    assert plan.slots == {WEB: "n1", WEB2: "n1"}
    assert plan.blocked == {"n1": "memory short by 84 MB"}


# --- checked again where it is written ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        (node(), True),
        (node(reserved=Room(950, 0, 0)), False),
        (node(online=False), False),
        (node(region="us"), False),
    ],
)
def test_a_plan_is_refused_when_its_node_has_changed(found: Node, holds: bool) -> None:
    plan = make_plan(demand(WEB), [], Fleet([node()]))
    before = found.reserved
    assert recheck(plan, {"n1": found}, {}) is holds
    assert found.reserved == (SMALL if holds else before)


def test_a_plan_is_refused_when_the_slot_to_come_back_has_left() -> None:
    plan = make_plan(demand(WEB), [Placed(WEB, "n1", SMALL, leaving=True)], Fleet([node(reserved=SMALL)]))
    assert recheck(plan, {"n1": node(reserved=SMALL)}, {(WEB, "n1"): SMALL})
    assert not recheck(plan, {"n1": node()}, {})
    data = Room(0, 0, 200)
    assert not recheck(plan, {"n1": node(reserved=data)}, {(WEB, "n1"): data}), "but for its data"


def test_the_room_of_data_is_for_whichever_slot_comes_to_it_first() -> None:
    web2, worker = ("web", 1), ("worker", 0)
    room, data = Room(100, 128, 2256), Room(0, 0, 2000)
    has = node(capacity=Room(1000, 1024, 2500), reserved=data)
    app = Demand("app", "eu", "running", room, (web2, worker), tied=True, bound="n1")
    kept = [Placed(WEB, "n1", data, leaving=True)]
    plan = make_plan(app, kept, Fleet([has]))
    assert plan.puts == (Put(web2, "n1", room, data, instead=WEB),), "and there is none for another one"
    assert plan.blocked == {"n1": "disk short by 2012 MB"}
    assert recheck(plan, {"n1": node(capacity=Room(1000, 1024, 2500), reserved=data)}, {(WEB, "n1"): data})
    # One that has its own place still comes back to that.
    kept.append(Placed(worker, "n1", room, leaving=True))
    app = replace(app, slots=(worker,))
    back = make_plan(app, kept, Fleet([node(reserved=Room(100, 128, 4096))]))
    assert back.puts == (Put(worker, "n1", room, room),)


def test_a_refused_plan_takes_nothing_from_the_nodes_that_had_room() -> None:
    fleet = Fleet([node("n1", capacity=Room(100, 128, 256)), node("n2", capacity=Room(100, 128, 256))])
    plan = make_plan(demand(WEB, WEB2), [], fleet)
    fresh = {"n1": node("n1"), "n2": node("n2", online=False)}
    assert not recheck(plan, fresh, {})
    assert fresh["n1"].reserved == NOTHING


# --- what a node must have besides room --------------------------------------------------------------


def needing(needs: Needs = ANY, **changes: Any) -> Demand:
    return replace(demand(WEB, WEB2), needs=needs, **changes)


SSD = frozenset({("disk", "ssd")})


def test_labels_runtime_and_architecture_are_had_or_the_node_says_what_it_lacks() -> None:
    fit = node("n4", reserved=Room(500, 500, 500))
    fit.labels, fit.runtimes, fit.architecture = SSD | {("zone", "a")}, frozenset({"runsc"}), "arm64"
    slow, plain, other = node("n1"), node("n2"), node("n3")
    slow.labels, slow.runtimes = frozenset({("disk", "hdd")}), frozenset({"runsc"})
    plain.labels = SSD
    other.labels, other.runtimes, other.architecture = SSD, frozenset({"runsc"}), "amd64"
    wanted = needing(Needs(SSD, "runsc", "arm64"))
    assert nodes_of(make_plan(wanted, [], Fleet([slow, plain, other, fit]))) == ["n4", "n4"]
    assert make_plan(wanted, [], Fleet([slow, plain, other])).blocked == {
        "n1": "has no label disk=ssd",
        "n2": "its engine has no runtime runsc",
        "n3": "it is amd64, the image is for arm64",
    }


def test_a_closed_node_takes_nothing_new_and_keeps_what_it_has() -> None:
    closed = node("n1", reserved=SMALL)
    closed.closed = "disabled by its administrator"
    plan = make_plan(demand(WEB, WEB2), [Placed(WEB, "n1", SMALL)], Fleet([closed]))
    assert plan.slots == {WEB: "n1"}
    assert plan.blocked == {"n1": "disabled by its administrator"}


def test_replicas_that_spread_go_where_fewest_are_and_share_a_node_only_when_they_must() -> None:
    fleet = Fleet([node("n1"), node("n2", reserved=Room(700, 128, 256)), node("n3")])
    spread = replace(demand(*(("web", i) for i in range(5))), spread=True)
    assert sorted(nodes_of(make_plan(spread, [], fleet))) == ["n1", "n1", "n2", "n3", "n3"]


def test_replicas_that_are_to_be_apart_never_share_a_node() -> None:
    plan = make_plan(needing(apart=True), [], Fleet([node("n1"), node("n2", reserved=Room(500, 0, 0))]))
    assert nodes_of(plan) == ["n1", "n2"]
    alone = make_plan(needing(apart=True), [], Fleet([node("n1")]))
    assert alone.slots == {WEB: "n1"}
    assert alone.blocked == {"n1": "runs another replica, and they are to be apart"}


def test_a_workload_runs_where_its_volumes_are_or_nowhere() -> None:
    fleet = Fleet([node("n1"), node("n2", reserved=Room(500, 500, 500))])
    assert nodes_of(make_plan(needing(bound="n2"), [], fleet)) == ["n2", "n2"]
    away = Fleet([node("n1"), node("n2", online=False)])
    assert make_plan(needing(bound="n2"), [], away).blocked == {"n2": "offline"}


def test_a_packed_fleet_fills_one_node_before_it_begins_another() -> None:
    fleet = Fleet([node("n1"), node("n2", reserved=Room(300, 0, 0)), node("n3")], pack=True)
    plan = make_plan(demand(WEB), [], fleet)
    assert nodes_of(plan) == ["n2"]


# --- a node that cannot keep what it has -------------------------------------------------------------


def test_what_has_lost_its_node_goes_elsewhere_and_may_take_the_reserve() -> None:
    reserve = node("n2", capacity=SMALL)
    reserve.kept = SMALL
    reserve.resize(NOTHING, NOTHING)
    fleet = Fleet([node("n1", online=False, reserved=SMALL), reserve])
    assert make_plan(demand(WEB), [], fleet).blocked == {
        "n1": "offline",
        "n2": "CPU short by 0.1 cores, memory short by 128 MB, disk short by 256 MB "
        "beside the reserve for failover",
    }
    plan = make_plan(demand(WEB), [Placed(WEB, "n1", SMALL)], fleet)
    assert plan.puts == (Put(WEB, "n2", SMALL, failover=True),)
    assert plan.removals == (Removal(WEB, "n1", "the node is offline"),)
    assert plan.blocked is None


def test_of_a_lost_node_as_much_is_saved_as_there_is_room_for() -> None:
    fleet = Fleet([node("n1", online=False), node("n2", capacity=SMALL)])
    placed = [Placed(WEB, "n1", SMALL), Placed(WEB2, "n1", SMALL)]
    plan = make_plan(demand(WEB, WEB2), placed, fleet)
    assert plan.slots == {WEB: "n2", WEB2: "n1"}
    assert plan.unserved
    assert plan.blocked is not None
    assert plan.blocked["n1"] == "offline"


def test_what_is_bound_to_a_lost_node_waits_for_it_and_says_so() -> None:
    fleet = Fleet([node("n1", online=False, reserved=SMALL), node("n2")])
    plan = make_plan(replace(demand(WEB), bound="n1"), [Placed(WEB, "n1", SMALL)], fleet)
    assert (plan.puts, plan.removals, plan.slots) == ((), (), {WEB: "n1"})
    assert plan.blocked == {"n1": "offline, and the volumes are there"}
    assert plan.unserved


def test_a_slot_of_a_drained_node_serves_until_it_runs_elsewhere() -> None:
    drained = node("n1", reserved=SMALL)
    drained.closed, drained.draining = "being drained", True
    fleet = Fleet([drained, node("n2")])
    plan = make_plan(demand(WEB), [Placed(WEB, "n1", SMALL)], fleet)
    assert plan.puts == (Put(WEB, "n2", SMALL),)
    assert plan.removals == ()
    assert plan.relieved == (Removal(WEB, "n1", "the node is being drained"),)
    handing = [Placed(WEB, "n1", SMALL, relieved_by="n2"), Placed(WEB, "n2", SMALL)]
    again = make_plan(demand(WEB), handing, fleet)
    assert (again.puts, again.removals, again.relieved) == ((), (), ())
    assert again.staying == ("n1",)
    stopped = make_plan(demand(state="stopped"), handing, fleet)
    assert {removal.node for removal in stopped.removals} == {"n1", "n2"}


def test_a_drained_slot_without_a_place_elsewhere_stays_and_nobody_is_alarmed() -> None:
    drained = node("n1", reserved=SMALL)
    drained.closed, drained.draining = "being drained", True
    plan = make_plan(demand(WEB), [Placed(WEB, "n1", SMALL)], Fleet([drained]))
    assert plan.slots == {WEB: "n1"}
    assert plan.blocked == {"n1": "being drained"}
    assert not plan.unserved


# --- many nodes --------------------------------------------------------------------------------------


def test_of_many_nodes_room_is_found_wherever_it_is_and_only_there() -> None:
    chance = random.Random(3)
    fleet = Fleet([node(f"n{i:03}", capacity=Room(400, 400, 400)) for i in range(300)])
    placed: list[Placed] = []
    for number in range(6000):
        if placed and chance.random() < 0.3:
            gone = placed.pop(chance.randrange(len(placed)))
            home = fleet.node(gone.node)
            assert home is not None
            fleet.resize(home, gone.room, NOTHING)
        room = Room(*(chance.choice([50, 100, 300]) for _ in range(3)))
        somewhere = any(n.fits(room) for n in fleet.region("eu"))
        plan = make_plan(Demand(f"app{number}", "eu", "running", room, (WEB,)), [], fleet)
        assert (plan.blocked is None) == somewhere
        placed += [Placed(put.slot, put.node, put.room) for put in plan.puts]
    assert all(Room(400, 400, 400).holds(n.reserved) for n in fleet.region("eu"))


def test_of_many_nodes_a_customer_is_named_a_few() -> None:
    plan = make_plan(demand(WEB), [], Fleet([node(f"n{i:03}", online=False) for i in range(300)]))
    assert plan.blocked is not None
    assert len(plan.blocked) == 22
    assert plan.blocked["280 more nodes"] == "none of them takes it"


# --- volumes -----------------------------------------------------------------------------------------


def test_what_has_volumes_runs_on_one_node_and_stays_there() -> None:
    fleet = Fleet([node("n1", capacity=Room(1000, 256, 4096)), node("n2")])
    plan = make_plan(replace(demand(WEB, WEB2, WEB3), tied=True), (), fleet)
    # The only one with room for all three together.
    assert nodes_of(plan) == ["n2", "n2", "n2"]
    assert plan.demand.bound == "n2"
    more = replace(plan.demand, slots=tuple(("web", i) for i in range(9)))
    placed = [Placed(put.slot, put.node, put.room) for put in plan.puts]
    full = make_plan(more, placed, fleet)
    assert set(full.slots.values()) == {"n2"}
    assert full.blocked is not None
    assert "memory short" in full.blocked["n2"]


def test_what_gets_volumes_comes_together() -> None:
    fleet = Fleet([node("n1"), node("n2")])
    placed = [Placed(WEB, "n2", SMALL), Placed(WEB2, "n1", SMALL)]
    plan = make_plan(replace(demand(WEB, WEB2), tied=True), placed, fleet)
    assert nodes_of(plan) == ["n1", "n1"]
    assert [(left.node, left.because) for left in plan.removals] == [("n2", "the volumes are on n1")]


def test_volumes_count_as_disk() -> None:
    volume = Volume(id=new_id("vol"), name="data", path="/data", size_mb=512)
    wanted = Demand.of(spec(volumes=(volume,)), "n1")
    assert wanted.room.disk_mb == Demand.of(spec()).room.disk_mb + 512
    assert (wanted.tied, wanted.bound) == (True, "n1")
    # Without volumes nothing holds it there any more.
    assert Demand.of(spec(), "n1").bound is None


def test_what_has_its_data_on_a_closed_node_starts_there_again() -> None:
    wanted = replace(demand(WEB), tied=True, bound="n1")
    closed, open_ = node(), node("n2")
    closed.closed = "disabled by its administrator"
    assert nodes_of(make_plan(wanted, [], Fleet([closed, open_]))) == ["n1"]
    assert nodes_of(make_plan(demand(WEB), [], Fleet([closed, open_]))) == ["n2"], "others are new work"
    # Where its data is about to go from here, it starts there.
    closed.closed, closed.draining = "being drained", True
    assert make_plan(wanted, [], Fleet([closed, open_])).blocked == {"n1": "being drained"}


@pytest.mark.parametrize(
    ("needs", "why"),
    [
        (Needs(labels=frozenset({("tier", "own")})), "has no label tier=own"),
        (Needs(runtime="runsc"), "its engine has no runtime runsc"),
        (Needs(architecture="arm64"), "it is amd64, the image is for arm64"),
    ],
)
def test_what_is_needed_by_now_is_looked_for_elsewhere(needs: Needs, why: str) -> None:
    here, there = node(reserved=SMALL), node("n2")
    here.architecture, there.architecture = "amd64", "arm64"
    there.labels, there.runtimes = frozenset({("tier", "own")}), frozenset({"runsc"})
    wanted, placed = replace(demand(WEB), needs=needs), [Placed(WEB, "n1", SMALL)]
    plan = make_plan(wanted, placed, Fleet([here, there]))
    # It serves where it is until it runs there.
    assert (nodes_of(plan), plan.relieved) == (["n2"], (Removal(WEB, "n1", f"n1: {why}"),))
    larger = make_plan(replace(wanted, room=Room(200, 256, 512)), placed, Fleet([here, there]))
    assert (nodes_of(larger), len(larger.removals)) == (["n2"], 1)
    alone = make_plan(wanted, placed, Fleet([here]))
    assert (nodes_of(alone), alone.blocked) == (["n1"], {"n1": why}), "nowhere to go, it stays and says so"
    bound = make_plan(replace(wanted, tied=True, bound="n1"), placed, Fleet([here, there]))
    assert (nodes_of(bound), bound.relieved) == (["n1"], ()), "its data is there"
