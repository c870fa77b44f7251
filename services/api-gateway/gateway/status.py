"""PURE. What an app is called to be doing, decided from intent and from what the platform has said so far.

Nothing here remembers: the same facts give the same answer, in whatever order they arrived. Used by
`workloads.settle` and `rollouts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from contracts.api import AppStatus, DeploymentStatus
from contracts.model import Model, Moment

WAITING: tuple[DeploymentStatus, ...] = ("queued", "building")
PENDING: tuple[DeploymentStatus, ...] = (*WAITING, "deploying", "blocked")
SETTLED: tuple[DeploymentStatus, ...] = ("running", "failed", "superseded", "cancelled")


class Placement(Model):
    at: Moment
    nodes: tuple[str, ...]
    # Nodes that went offline, whose work these take over.
    lost: tuple[str, ...] = ()

    @property
    def words(self) -> str | None:
        if not self.lost:
            return None
        gone = " and ".join(self.lost)
        return f"{gone} went offline; what ran there starts on {' and '.join(self.nodes)}"


class Blockage(Model):
    at: Moment
    reasons: dict[str, str]
    # Nodes it is on that went offline.
    lost: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        return blocked_words(self.reasons)


def blocked_words(reasons: Mapping[str, str]) -> str:
    each = "; ".join(f"{node}: {reason}" for node, reason in sorted(reasons.items()))
    return f"no node has room: {each}" if each else "the region has no node online"


class Rollout(Model):
    """What one node made of a generation."""

    at: Moment
    ok: bool
    running: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one generation. `running` counts instances of whatever release still serves where it is broken."""

    kind: Literal["pending", "blocked", "up", "broken"]
    reason: str | None = None
    running: int = 0
    # Part of what ran is on a node that went offline: `running` counts what is left.
    lost: bool = False


def verdict(
    placement: Placement | None, blockage: Blockage | None, rollouts: Mapping[str, Rollout]
) -> Verdict:
    """Broken as soon as one node says so; up when every chosen node has said so, or, where only a part of the
    instances found room, when a node has said so of its part."""
    heard = {n: r for n, r in rollouts.items() if placement is None or n in placement.nodes}
    broken = sorted(node for node, rollout in heard.items() if not rollout.ok)
    if broken:
        reason = heard[broken[0]].reason or "the instances did not become healthy"
        # Whoever is to be relieved goes on until what is to follow has come to life.
        return Verdict("broken", f"{broken[0]}: {reason}", sum(r.running for r in rollouts.values()))
    short = blockage is not None and (placement is None or blockage.at > placement.at)
    words = blockage.words if short and blockage is not None else None
    lost = (blockage.lost if short and blockage is not None else ()) or (placement.lost if placement else ())
    heard = {n: r for n, r in heard.items() if n not in lost}
    running = sum(r.running for r in heard.values())
    # An app all of whose processes have no instance is placed on no node, and that is all there is to it.
    everywhere = placement is not None and len(set(placement.nodes)) == len(heard)
    if everywhere or (placement is None and short and running > 0):
        return Verdict("up", words, running)
    if short:
        return Verdict("blocked", words, running if lost else 0, bool(lost))
    return Verdict("pending", placement.words, running, True) if placement and lost else Verdict("pending")


@dataclass(frozen=True, slots=True)
class Facts:
    state: str
    suspended: bool
    funded: bool
    # There is an image to run, and some instance of it, or of the release before, is believed to run.
    released: bool
    live: bool
    rollout: Verdict
    asleep: bool = False
    # The newest deployment that is under way, or else the newest of all.
    deployment: DeploymentStatus | None = None
    number: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    status: AppStatus
    reason: str | None = None


def decide(facts: Facts) -> Standing:
    if facts.suspended:
        return Standing(
            "suspended",
            "there is credit again; start the app"
            if facts.funded
            else "the wallet is empty; add credit, then start the app",
        )
    if facts.deployment in WAITING:
        return Standing("building", facts.reason)
    if facts.deployment in PENDING:
        return Standing("deploying", facts.reason)
    if facts.state == "stopped":
        return Standing("stopped")
    if not facts.released:
        return Standing("failed", facts.reason) if facts.deployment == "failed" else Standing("created")
    if facts.rollout.kind == "broken":
        return Standing("running" if facts.live else "failed", facts.rollout.reason)
    if not facts.live:
        return Standing("deploying", facts.rollout.reason)
    if facts.asleep:
        return Standing("sleeping", "nobody asks for it; the next request wakes it")
    if facts.rollout.reason is None and facts.deployment == "failed":
        return Standing(
            "running", f"deployment {facts.number} failed, the release before it goes on: {facts.reason}"
        )
    return Standing("running", facts.rollout.reason)


def overtakes(number: int, others: Mapping[int, DeploymentStatus]) -> bool:
    """Whether a finished build still has a place: nothing newer has come further than building."""
    return not any(n > number and s in ("deploying", "blocked", "running") for n, s in others.items())
