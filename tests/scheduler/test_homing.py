"""Who gets a copy, where data moves, and which copy a workload goes on from: decided on values."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from contracts.ids import new_id
from contracts.workload import Process, Volume, WorkloadSpec
from hypothesis import given
from hypothesis import strategies as st
from scheduler.fleet import NOTHING, Fleet, Node, Room
from scheduler.homing import Copy, copy_due, copy_target, disk_of, failover_choice, move_target, surplus
from scheduler.reconcile import Demand

from tests.scheduler.samples import spec

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
VOLUME = Volume(id=new_id("vol"), name="data", path="/data", size_mb=1000)


WHOLE = Room(4000, 4096, 10_000)


def node(name: str, free: Room = WHOLE, **changes: object) -> Node:
    capacity = WHOLE
    reserved = Room(*(a - b for a, b in zip(capacity, free, strict=True)))
    return replace(Node(name, "eu", True, capacity, reserved, free), **changes)  # type: ignore[arg-type]


def stateful(**changes: object) -> WorkloadSpec:
    return spec(volumes=(VOLUME,), **changes)


def demand(of: WorkloadSpec, bound: str | None = "n1") -> Demand:
    return Demand.of(of, bound)


def copy(name: str, minutes_ago: float | None = 5, volumes: tuple[str, ...] = (VOLUME.id,)) -> Copy:
    taken = None if minutes_ago is None else NOW - timedelta(minutes=minutes_ago)
    return Copy(name, taken, frozenset(volumes))


def test_a_copy_is_due_when_the_newest_that_counts_is_old_enough() -> None:
    assert not copy_due(NOW, None, [])
    assert copy_due(NOW, 10, [])
    assert copy_due(NOW, 10, [copy("n2", None)])
    assert not copy_due(NOW, 10, [copy("n2", 9.9), copy("n3", 300)])
    assert copy_due(NOW, 10, [copy("n2", 10)])
    assert copy_due(NOW, 10, [copy("n2", 1)], away=["n2"])
    assert copy_due(NOW, 10, [replace(copy("n2", 1), dropping=True)])


def test_a_copy_goes_where_one_is_and_never_to_the_node_of_the_data() -> None:
    full = node("n3", Room(0, 0, 2000))
    fleet = Fleet([node("n1"), node("n2", Room(1000, 4096, 5000)), full, node("n4", online=False)])
    app = demand(stateful())
    assert copy_target(fleet, app, "n1", [], 1000).node == "n2"
    assert copy_target(fleet, app, "n1", ["n3"], 1000).node == "n3", "only what is new has to come there"
    assert copy_target(fleet, app, "n1", ["n4"], 1000).node == "n2"
    # One that cannot run it is better than none.
    assert copy_target(Fleet([node("n1"), full]), app, "n1", [], 1000).node == "n3"
    nowhere = copy_target(Fleet([node("n1"), full]), app, "n1", [], 3000)
    assert (nowhere.node, dict(nowhere.reasons)) == (None, {"n3": "disk short by 1000 MB"})
    alone = copy_target(Fleet([node("n1")]), app, "n1", [], 1000)
    assert dict(alone.reasons) == {"region eu": "there is no other node"}


def test_data_moves_where_all_of_its_instances_fit() -> None:
    app = demand(stateful(processes={"web": Process(replicas=3)}))
    narrow = node("n2", Room(4000, 300, 10_000))
    fleet = Fleet([node("n1"), narrow, node("n3", closed="being drained"), node("n4", Room(900, 900, 9000))])
    assert move_target(fleet, app, "n1", {"n2": NOTHING}, 1000).node == "n4"
    nowhere = move_target(fleet, app, "n1", {}, 1000, busy=["n4"])
    assert dict(nowhere.reasons) == {
        "n2": "memory short by 84 MB",
        "n3": "being drained",
        "n4": "copies others at the moment",
    }
    stopped = demand(stateful(state="stopped"))
    assert move_target(Fleet([node("n1"), full_of_work()]), stopped, "n1", {}, 1000).node == "n2"


def full_of_work() -> Node:
    return node("n2", Room(0, 0, 1000))


def test_it_goes_on_from_the_newest_copy_that_has_all_its_volumes_and_can_run() -> None:
    app = stateful()
    nodes = {n.name: n for n in (node("n1", online=False), node("n2"), node("n3"), node("n4", online=False))}
    copies = [copy("n2", 30), copy("n3", 5), copy("n4", 1), copy("n1", 0)]
    chosen, _ = failover_choice(nodes, demand(app), app, copies, {})
    assert chosen == copy("n3", 5)
    lacking = [copy("n2", 30), copy("n3", 5, ())]
    assert failover_choice(nodes, demand(app), app, lacking, {})[0] == copy("n2", 30)
    chosen, why = failover_choice(nodes, demand(app), app, [copy("n3", 5, ()), copy("n4", 1)], {})
    assert (chosen, dict(why)) == (None, {"n3": "its copy lacks 1 of the volumes", "n4": "offline"})


def test_the_room_of_the_copy_becomes_the_room_of_the_data_and_the_reserve_is_for_this() -> None:
    app = stateful()
    tight = node("n2", Room(100, 128, 256), kept=Room(100, 128, 256))
    assert failover_choice({"n2": tight}, demand(app), app, [copy("n2")], {})[0] is None
    room = {"n2": Room(0, 0, disk_of(app))}
    assert failover_choice({"n2": tight}, demand(app), app, [copy("n2")], room)[0] == copy("n2")


def test_only_the_newest_copy_is_kept_and_none_before_there_is_one() -> None:
    both = [copy("n2", 30), copy("n3", 5)]
    assert surplus(both, wanted=True, home="n1", under_way=None) == ["n2"]
    assert surplus(both, wanted=True, home="n1", under_way="n2") == []
    assert surplus([copy("n2", 30), copy("n3", None)], wanted=True, home="n1", under_way=None) == ["n3"]
    assert surplus([copy("n3", None)], wanted=True, home="n1", under_way=None) == []
    assert surplus(both, wanted=False, home="n1", under_way="n3") == ["n2"]
    assert surplus([replace(copy("n2"), dropping=True)], wanted=False, home="n1", under_way=None) == []


@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.booleans(),
            st.integers(0, 4000),
            st.integers(0, 4096),
            st.integers(0, 10_000),
            st.one_of(st.none(), st.floats(0, 100)),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    ),
    st.integers(1, 3),
)
def test_whatever_the_nodes_are_nothing_goes_where_it_cannot_run(
    drawn: list[tuple[bool, bool, int, int, int, float | None, bool]], replicas: int
) -> None:
    app = stateful(processes={"web": Process(replicas=replicas)})
    asked, nodes, copies = demand(app, "n0"), [], []
    for i, (online, closed, cpu, memory, disk, age, whole) in enumerate(drawn):
        name = f"n{i}"
        made = node(name, Room(cpu, memory, disk), online=online, closed="disabled" if closed else None)
        nodes.append(made)
        if age is not None:
            copies.append(copy(name, age, (VOLUME.id,) if whole else ()))
    fleet = Fleet(nodes)
    whole_room = asked.room.times(replicas)
    chosen, _ = failover_choice({n.name: n for n in nodes}, asked, app, copies, {})
    for target in (
        move_target(fleet, asked, "n0", {c.node: NOTHING for c in copies}, 1000).node,
        None if chosen is None else chosen.node,
    ):
        if target is None:
            continue
        taker = fleet.node(target)
        assert taker is not None
        assert target != "n0"
        assert taker.online
        assert taker.closed is None
        assert taker.free.holds(whole_room)
    if chosen is not None:
        assert VOLUME.id in chosen.volumes
        better = [c for c in copies if c.taken_at and chosen.taken_at and c.taken_at > chosen.taken_at]
        refused = failover_choice({n.name: n for n in nodes}, asked, app, better, {})
        assert refused[0] is None
    held = surplus(copies, wanted=True, home="n0", under_way=None)
    complete = [c.node for c in copies if c.node != "n0"]
    assert len(complete) - len([target for target in held if target != "n0"]) == (1 if complete else 0)
