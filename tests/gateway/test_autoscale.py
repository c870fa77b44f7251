"""When a rule gives an app more instances, and when it takes them away."""

from datetime import UTC, datetime, timedelta

from contracts.ids import new_id
from contracts.queries import InstanceUse
from contracts.scaling_api import AutoscaleRule
from contracts.workload import Limits
from gateway.autoscale import Watched, decide, load_of, with_requests

START = datetime(2026, 1, 1, tzinfo=UTC)
RULE = AutoscaleRule(min=1, max=6)


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def run(rule: AutoscaleRule, loads: list[float | None], replicas: int = 1) -> list[int]:
    """A look a minute."""
    watched, seen = Watched(), []
    for minute, load in enumerate(loads):
        replicas, watched = decide(rule, replicas, load, watched, at(minute))
        seen.append(replicas)
    return seen


def test_more_after_five_minutes_above_and_not_before() -> None:
    assert run(RULE, [90] * 6) == [1, 1, 1, 1, 1, 2]
    # A dip begins it anew.
    assert run(RULE, [90, 90, 90, 70, 90, 90, 90, 90, 90]) == [1] * 9


def test_as_many_as_bring_the_load_back_and_never_more_than_allowed() -> None:
    assert run(RULE, [95] * 6, replicas=3)[-1] == 6
    assert run(RULE, [200] * 6, replicas=5)[-1] == 6
    assert run(RULE, [200] * 30, replicas=6) == [6] * 30


def test_fewer_one_by_one_after_fifteen_minutes_below() -> None:
    seen = run(RULE, [5] * 33, replicas=3)
    assert seen[:15] == [3] * 15
    assert seen[15:31] == [2] * 16
    assert seen[31] == 1
    assert run(RULE, [5] * 60, replicas=1)[-1] == 1


def test_never_twice_within_the_pause() -> None:
    rule = RULE.model_copy(update={"cooldown_seconds": 20 * 60})
    seen = run(rule, [100] * 30, replicas=2)
    assert seen[5:25] == [4] * 20
    assert seen[25] == 6


def test_what_is_not_known_is_no_reason() -> None:
    assert run(RULE, [90, 90, 90, 90, None, 90, 90, 90, 90]) == [1] * 9


def test_a_new_rule_holds_at_once() -> None:
    rule = AutoscaleRule(min=2, max=3)
    assert run(rule, [None], replicas=1) == [2]
    assert run(rule, [None], replicas=9) == [3]


def test_load_is_that_of_the_scarcer_resource_of_what_is_routed() -> None:
    def use(process: str, cpu: int, memory: int) -> InstanceUse:
        return InstanceUse(
            instance=new_id("ins"),
            node="n1",
            process=process,
            index=0,
            cpu_millis=cpu,
            memory_mb=memory,
            at=START,
        )

    limits = Limits(cpu_millis=1000, memory_mb=100, disk_mb=100)
    used = [use("web", 100, 50), use("web", 300, 90), use("worker", 1000, 100)]
    assert load_of(used, limits) == 70
    assert load_of([use("worker", 1000, 100)], limits) is None


def test_requests_are_load_where_the_rule_says_how_many() -> None:
    rule = RULE.model_copy(update={"requests_per_second": 50})
    # So many as it allows are the upper mark; twice as many of two instances too.
    assert with_requests(5, rule, 1, 50) == rule.up_percent
    assert with_requests(5, rule, 2, 100) == rule.up_percent
    assert with_requests(95, rule, 1, 50) == 95
    assert with_requests(5, RULE, 1, 5000) == 5
    # Nobody knows how many: then the instances' own load counts; and what is no load stays none.
    assert with_requests(5, rule, 1, None) == 5
    assert with_requests(None, rule, 1, 5000) is None
    # 60 a second of one instance: one more after five minutes, and none after that.
    watched, replicas, seen = Watched(), 1, []
    for minute in range(12):
        replicas, watched = decide(rule, replicas, with_requests(5, rule, replicas, 60), watched, at(minute))
        seen.append(replicas)
    assert seen == [1] * 5 + [2] * 7
    # Down when so few are left that fewer instances do; one by one.
    for minute in range(12, 40):
        replicas, watched = decide(rule, replicas, with_requests(5, rule, replicas, 20), watched, at(minute))
    assert replicas == 1
