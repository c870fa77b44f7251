"""The rules of status, as tables."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from gateway.status import Blockage, Facts, Placement, Rollout, Verdict, decide, overtakes, verdict

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)
NEW = Facts(
    state="running", suspended=False, funded=False, released=False, live=False, rollout=Verdict("pending")
)
UP = replace(NEW, released=True, live=True, rollout=Verdict("up"), deployment="running", number=1)
STOPPED = replace(UP, state="stopped", live=False, rollout=Verdict("pending"))
BROKEN = Verdict("broken", "n1: exit 1")


@pytest.mark.parametrize(
    ("facts", "status", "reason"),
    [
        pytest.param(NEW, "created", None, id="nothing has been asked of it"),
        pytest.param(replace(NEW, deployment="queued"), "building", None, id="waits for a builder"),
        pytest.param(
            replace(NEW, deployment="queued", reason="no builder"),
            "building",
            "no builder",
            id="and says why",
        ),
        pytest.param(replace(NEW, deployment="building"), "building", None, id="is built"),
        pytest.param(
            replace(NEW, deployment="failed", reason="boom"), "failed", "boom", id="the first build failed"
        ),
        pytest.param(
            replace(NEW, deployment="superseded", reason="x"), "created", None, id="the first was stopped"
        ),
        pytest.param(
            replace(NEW, released=True, deployment="deploying"), "deploying", None, id="goes to its nodes"
        ),
        pytest.param(
            replace(NEW, released=True, deployment="blocked", reason="no room"),
            "deploying",
            "no room",
            id="finds no room",
        ),
        pytest.param(UP, "running", None, id="runs"),
        pytest.param(
            replace(UP, asleep=True), "sleeping", "nobody asks for it; the next request wakes it", id="sleeps"
        ),
        pytest.param(replace(UP, asleep=True, deployment="building"), "building", None, id="is woken by it"),
        pytest.param(replace(STOPPED, asleep=True), "stopped", None, id="is not asleep but stopped"),
        pytest.param(replace(UP, deployment="building"), "building", None, id="runs and builds the next"),
        pytest.param(
            replace(UP, deployment="failed", number=4, reason="boom", rollout=Verdict("pending")),
            "running",
            "deployment 4 failed, the release before it goes on: boom",
            id="runs the release before the failed one",
        ),
        pytest.param(
            replace(UP, rollout=Verdict("up", "no node has room: n1: full")),
            "running",
            "no node has room: n1: full",
            id="runs in part",
        ),
        pytest.param(replace(UP, rollout=BROKEN), "running", "n1: exit 1", id="still runs somewhere"),
        pytest.param(
            replace(UP, live=False, rollout=BROKEN), "failed", "n1: exit 1", id="runs nowhere any more"
        ),
        pytest.param(STOPPED, "stopped", None, id="stopped"),
        pytest.param(
            replace(STOPPED, deployment="building"), "building", None, id="stopped, and deployed again"
        ),
        pytest.param(replace(STOPPED, state="running"), "deploying", None, id="started"),
        pytest.param(
            replace(STOPPED, state="running", rollout=Verdict("blocked", "no room")),
            "deploying",
            "no room",
            id="started without room",
        ),
        pytest.param(
            replace(STOPPED, suspended=True),
            "suspended",
            "the wallet is empty; add credit, then start the app",
            id="suspended",
        ),
        pytest.param(
            replace(STOPPED, suspended=True, funded=True),
            "suspended",
            "there is credit again; start the app",
            id="suspended with credit",
        ),
    ],
)
def test_status(facts: Facts, status: str, reason: str | None) -> None:
    standing = decide(facts)
    assert (standing.status, standing.reason) == (status, reason)


ONE, TWO = Placement(at=NOW, nodes=("n1",)), Placement(at=NOW, nodes=("n1", "n2"))
FULL = Blockage(at=LATER, reasons={"n2": "cpu short", "n1": "memory short by 256 MB"})
WORDS = "no node has room: n1: memory short by 256 MB; n2: cpu short"
OK = Rollout(at=NOW, ok=True, running=1, reason=None)
BAD = Rollout(at=NOW, ok=False, running=1, reason="exit 1")


@pytest.mark.parametrize(
    ("placement", "blockage", "rollouts", "expected"),
    [
        pytest.param(None, None, {}, Verdict("pending"), id="nothing heard"),
        pytest.param(ONE, None, {}, Verdict("pending"), id="placed"),
        pytest.param(
            None, None, {"n1": OK}, Verdict("pending"), id="a node was faster than the word of its placement"
        ),
        pytest.param(ONE, None, {"n1": OK}, Verdict("up", None, 1), id="up"),
        pytest.param(TWO, None, {"n1": OK}, Verdict("pending"), id="up on one of two"),
        pytest.param(TWO, None, {"n1": OK, "n2": OK}, Verdict("up", None, 2), id="up on both"),
        pytest.param(
            TWO, None, {"n1": OK, "n2": BAD}, Verdict("broken", "n2: exit 1", 2), id="broken on one"
        ),
        pytest.param(
            ONE, None, {"n1": OK, "n2": BAD}, Verdict("up", None, 1), id="broken where it is no longer"
        ),
        pytest.param(None, None, {"n1": BAD}, Verdict("broken", "n1: exit 1", 1), id="broken before placed"),
        pytest.param(
            ONE,
            None,
            {"n1": BAD.model_copy(update={"running": 0}), "n2": OK},
            Verdict("broken", "n1: exit 1", 1),
            id="broken where it is to go, and it serves on where it was",
        ),
        pytest.param(
            ONE,
            None,
            {"n1": BAD.model_copy(update={"reason": None, "running": 0})},
            Verdict("broken", "n1: the instances did not become healthy", 0),
            id="broken without words",
        ),
        pytest.param(None, FULL, {}, Verdict("blocked", WORDS), id="blocked"),
        pytest.param(
            None,
            Blockage(at=NOW, reasons={}),
            {},
            Verdict("blocked", "the region has no node online"),
            id="no nodes",
        ),
        pytest.param(None, FULL, {"n1": OK}, Verdict("up", WORDS, 1), id="a part of it found room"),
        pytest.param(ONE, FULL, {"n1": OK}, Verdict("up", WORDS, 1), id="was up, and has no room for more"),
        pytest.param(
            Placement(at=LATER + timedelta(1), nodes=("n1",)),
            FULL,
            {},
            Verdict("pending"),
            id="room was found",
        ),
        pytest.param(
            Placement(at=NOW, nodes=("n2",), lost=("n1",)),
            None,
            {"n1": OK},
            Verdict("pending", "n1 went offline; what ran there starts on n2", 0, lost=True),
            id="its node went offline",
        ),
        pytest.param(
            Placement(at=NOW, nodes=("n2",), lost=("n1",)),
            None,
            {"n1": OK, "n2": OK},
            Verdict("up", None, 1),
            id="up elsewhere",
        ),
        pytest.param(
            TWO,
            FULL.model_copy(update={"lost": ("n1",)}),
            {"n1": OK, "n2": OK},
            Verdict("blocked", WORDS, 1, lost=True),
            id="a part of it is lost and has nowhere to go",
        ),
    ],
)
def test_verdict(
    placement: Placement | None, blockage: Blockage | None, rollouts: dict[str, Rollout], expected: Verdict
) -> None:
    assert verdict(placement, blockage, rollouts) == expected


def test_a_build_that_was_overtaken_has_no_place_any_more() -> None:
    assert overtakes(2, {1: "running", 2: "building"})
    assert overtakes(2, {2: "building", 3: "queued", 4: "building", 5: "failed"})
    assert not overtakes(2, {2: "building", 3: "deploying"})
    assert not overtakes(2, {2: "building", 3: "blocked"})
    assert not overtakes(2, {2: "building", 3: "running"})
