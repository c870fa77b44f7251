"""What is to be done so that a node runs what it should of one workload. PURE.

Nothing that serves is taken away before what replaces it has been raised: `Raise` comes before `Retire`, and
a `Retire` names the slot whose new instance must be ready first. Where nothing differs, nothing is done.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from contracts.workload import NodeWorkload, Slot

from node_agent.engine import State

Reason = Literal["replaced", "stopped", "deleted", "moved", "unhealthy", "slept"]


@dataclass(frozen=True, slots=True)
class Seen:
    """An instance as it is found; one that is already on its way out is not among them."""

    instance: str
    slot: Slot
    fingerprint: str
    state: State
    # It has been made part of the workload: it is metered, and routed while it is ready.
    admitted: bool
    # It answers.
    ready: bool
    # It has failed its health check too often, and another is to take its place.
    broken: bool = False


@dataclass(frozen=True, slots=True)
class Discard:
    """Remove what never became part of the workload, and never will."""

    instance: str


@dataclass(frozen=True, slots=True)
class Raise:
    """Bring an instance of the slot to readiness: a new one, or the one that is there but not yet there."""

    slot: Slot
    instance: str | None = None
    # It has ended and nobody else will start it.
    start: bool = False


@dataclass(frozen=True, slots=True)
class Retire:
    """Out of the routes, drained, stopped, removed."""

    instance: str
    slot: Slot
    reason: Reason


Action: TypeAlias = Discard | Raise | Retire


def diff(wanted: NodeWorkload | None, seen: Iterable[Seen], *, asleep: bool = False) -> tuple[Action, ...]:
    """In the order in which they are to be done. None wanted: nothing has ever come to life here."""
    if asleep and wanted is not None:
        return tuple(
            replace(step, reason="slept") if isinstance(step, Retire) else step
            for step in diff(wanted.model_copy(update={"slots": ()}), seen)
        )
    found = sorted(seen, key=lambda s: s.instance)
    kept = _kept(wanted, found)
    rest = [s for s in found if s not in kept.values()]
    raises: list[Raise] = []
    retires: list[Retire] = []
    if wanted is not None:
        steps = (_raise(slot, kept.get(slot)) for slot in wanted.slots)
        raises = [step for step in steps if step is not None]
        # These serve, or will before anything retires.
        serving = {step.slot for step in raises} | {slot for slot, s in kept.items() if s.ready}
        retires = [
            Retire(s.instance, s.slot, _reason(wanted, s))
            for s in rest
            if s.admitted and not (s.ready and _needed(wanted, s.slot, serving))
        ]
    return (*(Discard(s.instance) for s in rest if not s.admitted), *raises, *retires)


def batches(raises: Sequence[Raise], least: int, slots: int) -> list[list[Raise]]:
    """A quarter of the slots at a time, where that is more than `least`: the rest goes on serving meanwhile,
    and the machine need not hold everything twice."""
    size = max(least, -(-slots // 4))
    return [list(raises[i : i + size]) for i in range(0, len(raises), size)]


def _kept(wanted: NodeWorkload | None, found: list[Seen]) -> dict[Slot, Seen]:
    """The best instance of each wanted slot."""
    if wanted is None:
        return {}
    fingerprint = wanted.spec.fingerprint()
    kept: dict[Slot, Seen] = {}
    for s in found:
        if s.slot not in wanted.slots or s.fingerprint != fingerprint or s.broken:
            continue
        if s.slot not in kept or _worth(s) > _worth(kept[s.slot]):
            kept[s.slot] = s
    return kept


def _worth(s: Seen) -> tuple[bool, bool, bool]:
    return s.admitted, s.ready, s.state == "running"


def _raise(slot: Slot, kept: Seen | None) -> Raise | None:
    if kept is None:
        return Raise(slot)
    down = kept.state in ("created", "exited")
    # One that was admitted and is not ready comes back by itself, or is found to be broken.
    return Raise(slot, kept.instance, start=down) if down or not kept.admitted else None


def _needed(wanted: NodeWorkload, slot: Slot, serving: set[Slot]) -> bool:
    """One of this slot must go on serving: what is to follow it does not serve at the moment."""
    if slot in wanted.slots:
        return slot not in serving
    return bool(wanted.slots) and not serving


def _reason(wanted: NodeWorkload, s: Seen) -> Reason:
    if wanted.spec.state == "deleted":
        return "deleted"
    if s.slot in wanted.slots:
        return "unhealthy" if s.broken else "replaced"
    process = wanted.spec.processes.get(s.slot.process)
    elsewhere = wanted.spec.wants_instances and process is not None and s.slot.index < process.replicas
    return "moved" if elsewhere else "stopped"
