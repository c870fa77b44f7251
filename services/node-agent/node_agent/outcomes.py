"""What a rollout came to, as it is kept and as it is told. PURE."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from contracts.events import RolloutFinished
from contracts.workload import WorkloadSpec

from node_agent.desired import Failure, Record
from node_agent.launch import Setback

_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 300.0


def pause(tries: int) -> float:
    """Before what has failed so often is tried again."""
    return min(_FIRST_PAUSE * 2.0 ** min(tries - 1, 16), _LONGEST_PAUSE)


def failure(spec: WorkloadSpec, setbacks: Sequence[Setback]) -> Failure:
    first = min(setbacks, key=lambda setback: str(setback.slot))
    reason = first.reason
    if len(setbacks) > 1:
        reason += f" (and {len(setbacks) - 1} more like it)"
    return Failure(
        generation=spec.generation,
        fingerprint=spec.fingerprint(),
        reason=reason,
        log_tail=first.log_tail,
    )


def finished(
    node: str,
    now: datetime,
    record: Record,
    running: int,
    said: tuple[str, ...] = (),
    *,
    asleep: bool,
) -> RolloutFinished:
    """Its id is made of what it tells, so that twice is once."""
    desired, failed = record.desired, record.failure
    spec = desired.spec
    told: dict[str, Any] = {"ok": True, "log_tail": said}
    if record.failed and failed is not None:
        told = {"ok": False, "reason": failed.reason, "log_tail": failed.log_tail}
    key = f"{node}/{spec.id}/{desired.revision}/{record.tries}/{told['ok']}"
    return RolloutFinished(
        id=f"rollout.{hashlib.sha256(key.encode()).hexdigest()[:32]}",
        at=now,
        node=node,
        workload=spec.id,
        organization=spec.organization,
        generation=spec.generation,
        deployment=spec.deployment,
        running=running,
        asleep=asleep,
        **told,
    )
