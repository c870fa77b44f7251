"""The method of every figure: what is measured and its baseline run in turn (A B A B …), and the median of
the pairs' ratios counts.

A noisy neighbour hits both of a pair, so ratios survive what absolute numbers do not. A figure is short
only when the median breaks its bound; the spread of the pairs is printed beside it.
"""

import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Arm: TypeAlias = Callable[[], Awaitable[float]]

PAIRS = 5


async def in_turn(*arms: Arm, rounds: int = PAIRS) -> list[list[float]]:
    """What each arm measured in each round; in every round all of them run, one after the other."""
    found: list[list[float]] = [[] for _ in arms]
    for _ in range(rounds):
        for measured, arm in zip(found, arms, strict=True):
            measured.append(await arm())
    return found


@dataclass(frozen=True)
class Figure:
    """A value and the bound it has to keep."""

    name: str
    value: float
    bound: float
    keeps: Literal["at least", "at most"]
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.value >= self.bound if self.keeps == "at least" else self.value <= self.bound

    @property
    def line(self) -> str:
        sign = ">=" if self.keeps == "at least" else "<="
        verdict = "ok" if self.ok else "short"
        return f"figure {self.name} {_number(self.value)} {sign}{_number(self.bound)} {verdict}"


def at_least(name: str, value: float, bound: float, note: str = "") -> Figure:
    return Figure(name, value, bound, "at least", note)


def at_most(name: str, value: float, bound: float, note: str = "") -> Figure:
    return Figure(name, value, bound, "at most", note)


def ratio(ours: Sequence[float], baseline: Sequence[float]) -> tuple[float, str]:
    """The median of the pairs' ratios, and their spread in words."""
    if len(ours) != len(baseline) or len(ours) < PAIRS:
        raise ValueError(f"a figure needs at least {PAIRS} whole pairs: {len(ours)} and {len(baseline)}")
    ratios = [a / b for a, b in zip(ours, baseline, strict=True)]
    spread = (
        f"{len(ratios)} pairs {_number(min(ratios))}..{_number(max(ratios))}, "
        f"medians {_number(statistics.median(ours))} against {_number(statistics.median(baseline))}"
    )
    return statistics.median(ratios), spread


def report(figures: Iterable[Figure]) -> int:
    """Prints a line for each figure; the exit status: 1 when one is short."""
    status = 0
    for figure in figures:
        if figure.note:
            print(f"  {figure.name}: {figure.note}")
        print(figure.line, flush=True)
        if not figure.ok:
            status = 1
    return status


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
