"""Whose turn it is, decided."""

from datetime import UTC, datetime, timedelta

from builder.turns import Waiting, order

AT = datetime(2026, 1, 2, tzinfo=UTC)


def waiting(*builds: str, preview: bool = False) -> list[Waiting]:
    """`a1`: the first of organization `a`."""
    return [
        Waiting(build, build[0], preview, AT + timedelta(seconds=place)) for place, build in enumerate(builds)
    ]


def named(found: list[Waiting], running: dict[str, int], served: dict[str, datetime]) -> list[str]:
    return [one.build for one in order(found, running, served)]


def test_organizations_take_turns_however_many_one_has_queued() -> None:
    queued = waiting("a1", "a2", "a3", "a4", "b1", "c1", "b2")
    assert named(queued, {}, {}) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_who_has_the_fewest_running_is_next_and_then_who_waited_longest() -> None:
    queued = waiting("a1", "b1", "c1")
    served = {"b": AT - timedelta(hours=1), "c": AT - timedelta(hours=2), "a": AT}
    assert named(queued, {"c": 1}, served) == ["b1", "a1", "c1"]
    assert named(queued, {}, served) == ["c1", "b1", "a1"]


def test_who_was_never_served_comes_first() -> None:
    assert named(waiting("a1", "b1"), {}, {"a": AT}) == ["b1", "a1"]


def test_production_comes_before_previews_of_the_same_organization_alone() -> None:
    queued = [*waiting("a1", "a2", preview=True), *waiting("a3", "b1")]
    assert named(queued, {}, {"b": AT}) == ["a3", "b1", "a1", "a2"]


def test_nobody_waits() -> None:
    assert named([], {"a": 2}, {"a": AT}) == []
