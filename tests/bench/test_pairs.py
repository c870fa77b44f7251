"""The arithmetic of the figures: the median of the pairs decides, and nothing else."""

import math

import pytest

from bench.pairs import PAIRS, Figure, at_least, at_most, in_turn, ratio, report


async def test_arms_run_in_turn() -> None:
    order: list[str] = []

    async def a() -> float:
        order.append("a")
        return float(len(order))

    async def b() -> float:
        order.append("b")
        return float(len(order))

    assert await in_turn(a, b, rounds=3) == [[1, 3, 5], [2, 4, 6]]
    assert order == ["a", "b"] * 3


def test_the_median_of_the_pairs_counts_and_not_the_ratio_of_the_medians() -> None:
    value, spread = ratio([2, 4, 60, 8, 10], [1, 4, 20, 8, 1])
    assert value == 2
    assert spread.startswith("5 pairs 1..10,")


def test_too_few_pairs_or_a_broken_one_are_no_figure() -> None:
    with pytest.raises(ValueError, match="at least 5"):
        ratio([1] * (PAIRS - 1), [1] * (PAIRS - 1))
    with pytest.raises(ValueError, match="whole pairs"):
        ratio([1] * PAIRS, [1] * (PAIRS + 1))


@pytest.mark.parametrize(
    ("figure", "line"),
    [
        (at_least("events.batched", 12.5, 12), "figure events.batched 12.5 >=12 ok"),
        (at_least("events.batched", 12, 12), "figure events.batched 12 >=12 ok"),
        (at_least("events.batched", 11.9, 12), "figure events.batched 11.9 >=12 short"),
        (at_most("footprint.ratio", 1.25, 1.25), "figure footprint.ratio 1.25 <=1.25 ok"),
        (at_most("footprint.ratio", 1.26, 1.25), "figure footprint.ratio 1.26 <=1.25 short"),
        (at_most("events.lost", 0, 0), "figure events.lost 0 <=0 ok"),
        (at_most("footprint.memory", 400.4, 400), "figure footprint.memory 400.4 <=400 short"),
        (at_least("api.rate", 0.7996, 0.8), "figure api.rate 0.7996 >=0.8 short"),
        (at_least("events.rate", 12345.6, 1000), "figure events.rate 12346 >=1000 ok"),
        (at_least("api.rate", math.nan, 0.8), "figure api.rate nan >=0.8 short"),
        (at_most("api.rate", math.nan, 0.8), "figure api.rate nan <=0.8 short"),
    ],
)
def test_a_figure_says_its_value_its_bound_and_whether_it_keeps_it(figure: Figure, line: str) -> None:
    assert figure.line == line


def test_one_short_figure_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = at_least("good", 2, 1, "as it should be"), at_least("bad", 1, 2)
    assert report([good]) == 0
    assert report([bad, good]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "  good: as it should be",
        "figure good 2 >=1 ok",
        "figure bad 1 >=2 short",
        "  good: as it should be",
        "figure good 2 >=1 ok",
    ]
