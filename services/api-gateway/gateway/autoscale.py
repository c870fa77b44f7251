"""PURE. When an app with a rule gets more instances, and when fewer.

More when its load has stayed above the upper mark for some minutes, as many as bring it back to the middle;
one fewer when it has stayed below the lower mark for longer; never twice within the pause.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from contracts.queries import InstanceUse
from contracts.scaling_api import AutoscaleRule
from contracts.workload import Limits


@dataclass(frozen=True, slots=True)
class Watched:
    """Since when the load has been above, or below, and when the number was changed last."""

    above_since: datetime | None = None
    below_since: datetime | None = None
    scaled_at: datetime | None = None


def load_of(used: Sequence[InstanceUse], limits: Limits) -> float | None:
    """In per cent of the plan, of whichever there is less left; the mean of the instances that are routed."""
    web = [one for one in used if one.process == "web"]
    if not web:
        return None
    cpu = sum(one.cpu_millis for one in web) / len(web) / limits.cpu_millis
    memory = sum(one.memory_mb for one in web) / len(web) / limits.memory_mb
    return 100 * max(cpu, memory)


def with_requests(
    load: float | None, rule: AutoscaleRule | None, replicas: int, per_second: float | None
) -> float | None:
    """The larger of the two: so many requests as the rule allows an instance are as much as its upper mark.
    Where nobody knows how many there are, what the instances use decides alone."""
    if load is None or rule is None or rule.requests_per_second is None or per_second is None or not replicas:
        return load
    return max(load, rule.up_percent * per_second / replicas / rule.requests_per_second)


def decide(
    rule: AutoscaleRule, replicas: int, load: float | None, watched: Watched, now: datetime
) -> tuple[int, Watched]:
    """How many there shall be, and what is remembered."""
    if replicas < rule.min or replicas > rule.max:
        # The rule is new, or the customer has just changed it.
        return min(max(replicas, rule.min), rule.max), Watched(scaled_at=now)
    if load is None:
        return replicas, replace(watched, above_since=None, below_since=None)
    above = (watched.above_since or now) if load > rule.up_percent else None
    below = (watched.below_since or now) if load < rule.down_percent else None
    seen = Watched(above, below, watched.scaled_at)
    if watched.scaled_at is not None and now < watched.scaled_at + timedelta(seconds=rule.cooldown_seconds):
        return replicas, seen
    if above is not None and now >= above + timedelta(seconds=rule.up_seconds):
        middle = (rule.up_percent + rule.down_percent) / 2
        wanted = min(rule.max, max(replicas + 1, math.ceil(replicas * load / middle)))
    elif below is not None and now >= below + timedelta(seconds=rule.down_seconds):
        wanted = max(rule.min, replicas - 1)
    else:
        return replicas, seen
    return wanted, Watched(scaled_at=now) if wanted != replicas else seen
