"""Who pays for which second, and that parts add up to the whole."""

from datetime import timedelta
from itertools import pairwise

import pytest
from billing.rating import Line, Span, differences, pieces_of, rate
from contracts.money import Rate, charge_until
from hypothesis import given
from hypothesis import strategies as st

from tests.billing.samples import START, at

HORIZON = 120
END = at(HORIZON)


def span(
    instance: str, since: float, until: float | None, *, micros: int = 7001, process: str = "web"
) -> Span:
    price = Rate(micros_per_hour=micros, currency="USD")
    return Span(instance, "app", process, 0, price, at(since), None if until is None else at(until))


def seconds(spans: list[Span], since: float = 0, until: float = HORIZON) -> dict[str, int]:
    return {line.instance: line.seconds for line in rate(spans, at(since), at(until))}


@pytest.mark.parametrize(
    ("what", "spans", "paid"),
    [
        ("one that runs", [span("a", 10, None)], {"a": 110}),
        ("one that ended", [span("a", 10, 20)], {"a": 10}),
        ("one after the other", [span("a", 0, 20), span("b", 30, 40)], {"a": 20, "b": 10}),
        ("a redeploy overlaps", [span("a", 0, 30), span("b", 20, None)], {"a": 20, "b": 100}),
        ("a stop that never came", [span("a", 0, None), span("b", 20, None)], {"a": 20, "b": 100}),
        ("a failed redeploy: the old one stays", [span("a", 0, None), span("b", 20, 25)], {"a": 115, "b": 5}),
        ("two fail", [span("a", 0, 100), span("b", 20, 25), span("c", 22, 24)], {"a": 95, "b": 3, "c": 2}),
        ("the same start", [span("a", 5, 40), span("b", 5, 20)], {"a": 20, "b": 15}),
        ("the same start and stop", [span("a", 5, 40), span("b", 5, 40)], {"b": 35}),
        ("a stop before the start", [span("a", 50, 40)], {}),
        ("not a whole second", [span("a", 0.5, 1.4)], {}),
        ("parts of seconds are not paid", [span("a", 0.2, 2.9)], {"a": 1}),
        ("slots do not share", [span("a", 0, 10), span("b", 0, 10, process="worker")], {"a": 10, "b": 10}),
        ("started before, ended after", [span("a", -500, 500)], {"a": 120}),
    ],
)  # fmt: skip
def test_each_second_of_a_slot_is_paid_once(what: str, spans: list[Span], paid: dict[str, int]) -> None:
    assert seconds(spans) == paid
    assert seconds(spans[::-1]) == paid


moments = st.integers(-20_000, 140_000).map(lambda milliseconds: milliseconds / 1000)
# Half of the moments are few whole seconds: equal starts and touching ends are the hard part.
somewhen = st.one_of(moments, st.integers(-3, 12).map(float))
slots = st.lists(st.tuples(somewhen, st.one_of(st.none(), somewhen), st.integers(0, 2**40)), max_size=6).map(
    lambda found: [span(f"i{n}", a, b, micros=m) for n, (a, b, m) in enumerate(found)]
)


def payer(slot: list[Span], second: int) -> str | None:
    """The rule, said once more and as simply as can be."""
    running = [
        s for s in slot if s.started_at <= at(second) and (s.ended_at is None or s.ended_at >= at(second + 1))
    ]
    return max(running, key=lambda s: (s.started_at, s.instance)).instance if running else None


@given(slots)
def test_the_pieces_of_a_slot_tile_what_ran(slot: list[Span]) -> None:
    offset = int(START.timestamp())
    paid: dict[int, str] = {}
    for piece in pieces_of(slot, START, END):
        assert piece.first < piece.end
        for second in range(piece.first - offset, piece.end - offset):
            assert second not in paid, "paid twice"
            paid[second] = piece.span.instance
    expected = {s: p for s in range(HORIZON) if (p := payer(slot, s)) is not None}
    assert paid == expected


@given(slots, st.randoms())
def test_the_order_of_facts_changes_nothing(slot: list[Span], random: object) -> None:
    shuffled = list(slot)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert rate(shuffled, START, END) == rate(slot, START, END)


@given(slots)
def test_nobody_pays_more_time_than_passed(slot: list[Span]) -> None:
    intervals = sorted((max(s.started_at, START), min(s.ended_at or END, END)) for s in slot)
    union, reached = timedelta(), START
    for first, last in intervals:
        if last > max(first, reached):
            union, reached = union + (last - max(first, reached)), last
    assert timedelta(seconds=sum(seconds(slot).values())) <= union


@given(slots, st.lists(st.integers(1, HORIZON - 1), max_size=5, unique=True))
def test_periods_add_up_to_the_whole_to_the_micro(slot: list[Span], cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), HORIZON]
    parts = [line for a, b in pairwise(borders) for line in rate(slot, at(a), at(b))]
    whole = rate(slot, START, END)
    for line in whole:
        assert sum(p.seconds for p in parts if p.instance == line.instance) == line.seconds
        assert sum(p.micros for p in parts if p.instance == line.instance) == line.micros
    assert {p.instance for p in parts} == {line.instance for line in whole}


@given(st.integers(0, 2**40), st.integers(0, 10_000))
def test_an_undisturbed_instance_pays_its_rate(micros: int, length: int) -> None:
    lines = rate([span("a", 0, length, micros=micros)], START, at(20_000))
    assert sum(line.micros for line in lines) == charge_until(
        Rate(micros_per_hour=micros, currency="USD"), length
    )


def line(instance: str, seconds: int, micros: int) -> Line:
    return Line(instance, "app", seconds, micros)


def test_a_round_holds_only_what_differs() -> None:
    charged = {"a": line("a", 60, 100), "b": line("b", 10, 20), "c": line("c", 5, 7)}
    owed = [line("a", 60, 100), line("b", 30, 60), line("d", 1, 0)]
    assert differences(owed, charged) == [line("b", 20, 40), line("c", -5, -7), line("d", 1, 0)]
    assert differences(charged.values(), charged) == []
