"""What is to be done: tables for the cases, properties for all of them."""

from dataclasses import replace

import pytest
from contracts.workload import NodeWorkload, Process, Slot
from hypothesis import given, settings
from hypothesis import strategies as st
from node_agent.diff import Action, Discard, Raise, Retire, Seen, diff
from node_agent.engine import State

from tests.node_agent.conftest import slots, spec

APP = spec(processes={"web": Process(replicas=2)})
NOW = APP.fingerprint()
OLD = "an older release"
WEB = slots(3)


def want(count: int, **changes: object) -> NodeWorkload:
    chosen = APP.model_copy(update=changes)
    return NodeWorkload(node="local", revision=1, spec=chosen, slots=slots(count))


def seen(name: str, slot: int = 0, fingerprint: str = NOW, state: State = "running", **more: bool) -> Seen:
    return Seen(name, WEB[slot], fingerprint, state, **{"admitted": True, "ready": True, **more})


CASES: dict[str, tuple[NodeWorkload | None, list[Seen], tuple[Action, ...]]] = {
    "nothing wanted, nothing there": (want(0), [], ()),
    "all there": (want(2), [seen("a", 0), seen("b", 1)], ()),
    "first": (want(2), [], (Raise(WEB[0]), Raise(WEB[1]))),
    "one missing": (want(2), [seen("a", 0)], (Raise(WEB[1]),)),
    "new release": (
        want(1),
        [seen("a", fingerprint=OLD)],
        (Raise(WEB[0]), Retire("a", WEB[0], "replaced")),
    ),
    "new release, half made": (
        want(1),
        [seen("a", fingerprint=OLD), seen("b", state="created", admitted=False, ready=False)],
        (Raise(WEB[0], "b", start=True), Retire("a", WEB[0], "replaced")),
    ),
    "new release, still starting": (
        want(1),
        [seen("b", admitted=False, ready=False)],
        (Raise(WEB[0], "b"),),
    ),
    "left over from a release that failed": (
        want(1),
        [seen("a"), seen("b", fingerprint=OLD, admitted=False)],
        (Discard("b"),),
    ),
    "made twice": (want(1), [seen("a"), seen("b", admitted=False)], (Discard("b"),)),
    "killed by hand": (want(1), [seen("a", state="exited", ready=False)], (Raise(WEB[0], "a", start=True),)),
    "crashed, and coming back": (want(1), [seen("a", state="restarting", ready=False)], ()),
    "not ready for a moment": (want(1), [seen("a", ready=False)], ()),
    "an old one that serves while the new one does not": (
        want(1),
        [seen("a", fingerprint=OLD), seen("b", ready=False)],
        (),
    ),
    "scaled down while what stays does not serve": (want(1), [seen("a", 0, ready=False), seen("b", 1)], ()),
    "scaled down while nothing serves": (
        want(1),
        [seen("a", 0, ready=False), seen("b", 1, ready=False)],
        (Retire("b", WEB[1], "moved"),),
    ),
    "broken": (
        want(1),
        [seen("a", ready=False, broken=True)],
        (Raise(WEB[0]), Retire("a", WEB[0], "unhealthy")),
    ),
    "scaled down": (
        want(1, processes={"web": Process(replicas=1)}),
        [seen("a", 0), seen("b", 1)],
        (Retire("b", WEB[1], "stopped"),),
    ),
    "given to another node": (want(1), [seen("a", 0), seen("b", 1)], (Retire("b", WEB[1], "moved"),)),
    "stopped": (want(0, state="stopped"), [seen("a")], (Retire("a", WEB[0], "stopped"),)),
    "deleted": (want(0, state="deleted"), [seen("a")], (Retire("a", WEB[0], "deleted"),)),
    "nothing ever came to life": (None, [seen("a", admitted=False, ready=False)], (Discard("a"),)),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case: str) -> None:
    wanted, found, actions = CASES[case]
    assert diff(wanted, found) == actions


@st.composite
def worlds(draw: st.DrawFn) -> tuple[NodeWorkload, list[Seen]]:
    state = draw(st.sampled_from(["running", "running", "stopped", "deleted"]))
    wanted = want(draw(st.integers(0, 3)) if state == "running" else 0, state=state)
    found = [
        Seen(
            instance=f"i{number}",
            slot=draw(st.sampled_from(WEB)),
            fingerprint=draw(st.sampled_from([NOW, OLD])),
            state=draw(st.sampled_from(["created", "running", "restarting", "exited"])),
            admitted=draw(st.booleans()),
            ready=draw(st.booleans()),
            broken=draw(st.booleans()),
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    return wanted, found


@given(worlds())
def test_every_removal_has_its_reason(world: tuple[NodeWorkload, list[Seen]]) -> None:
    wanted, found = world
    actions = diff(wanted, found)
    by_name = {s.instance: s for s in found}
    for action in actions:
        if isinstance(action, Discard):
            assert not by_name[action.instance].admitted
        if isinstance(action, Retire):
            leaving = by_name[action.instance]
            fits = leaving.slot in wanted.slots and leaving.fingerprint == NOW and not leaving.broken
            better = any(
                s.instance != leaving.instance and s.slot == leaving.slot and s.fingerprint == NOW
                for s in found
            )
            assert not fits or better


@given(worlds())
def test_no_instance_has_two_fates(world: tuple[NodeWorkload, list[Seen]]) -> None:
    named = [action.instance for action in diff(*world) if action.instance is not None]
    assert len(named) == len(set(named))


@given(worlds())
def test_everything_is_raised_before_anything_retires(world: tuple[NodeWorkload, list[Seen]]) -> None:
    kinds = [type(action) for action in diff(*world)]
    assert kinds == sorted(kinds, key=[Discard, Raise, Retire].index)


def carried_out(found: list[Seen], actions: tuple[Action, ...], fails: set[Slot]) -> list[list[Seen]]:
    """Each state the node goes through. A raise of a slot in `fails` comes to nothing."""
    states = [found]
    for number, action in enumerate(actions):
        now = states[-1]
        if isinstance(action, Discard):
            now = [s for s in now if s.instance != action.instance]
        elif isinstance(action, Raise) and action.slot not in fails:
            if action.instance is None:
                now = [*now, Seen(f"new{number}", action.slot, NOW, "running", admitted=True, ready=True)]
            else:
                now = [
                    replace(s, state="running", admitted=True, ready=True)
                    if s.instance == action.instance
                    else s
                    for s in now
                ]
        elif isinstance(action, Retire) and action.slot not in fails:
            now = [s for s in now if s.instance != action.instance]
        states.append(now)
    return states


def serving(found: list[Seen]) -> int:
    return sum(s.admitted and s.ready and s.state == "running" for s in found)


@given(worlds(), st.sets(st.sampled_from(WEB)))
@settings(max_examples=300)
def test_the_last_that_serves_never_goes_before_another_does(
    world: tuple[NodeWorkload, list[Seen]], fails: set[Slot]
) -> None:
    wanted, found = world
    if not wanted.slots or not serving(found):
        return
    states = carried_out(found, diff(wanted, found), fails)
    ours = any(s.slot in wanted.slots for s in found if s.admitted and s.ready and s.state == "running")
    # The last one of a slot that went to another node goes with it, even when nothing comes up here.
    assert all(serving(state) for state in states) or (fails and not ours)


@given(worlds())
def test_done_once_there_is_nothing_left_to_do(world: tuple[NodeWorkload, list[Seen]]) -> None:
    wanted, end = world
    for _ in range(2):
        end = [replace(s, ready=True) for s in carried_out(end, diff(wanted, end), set())[-1]]
    assert diff(wanted, end) == ()
    assert {s.slot for s in end} == set(wanted.slots)
    assert len(end) == len(wanted.slots)
