"""Periods tile: no moment is in two of them or in none."""

from datetime import UTC, datetime, timedelta

import pytest
from billing.periods import MOST, OPENING, following, tick_id
from billing.settings import BillingSettings
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

NOON = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)


def test_the_first_period_ends_at_the_last_border_and_reaches_far_back() -> None:
    now = NOON + timedelta(minutes=7)
    assert following(None, now, 3600) == [(NOON - OPENING, NOON)]


def test_nothing_follows_before_the_next_border() -> None:
    assert following(NOON, NOON + timedelta(minutes=59, seconds=59), 3600) == []
    assert following(NOON, NOON + timedelta(hours=1), 3600) == [(NOON, NOON + timedelta(hours=1))]


def test_ten_years_of_hours_tile() -> None:
    """Through leap days and every change to summer time."""
    now, last, hours = datetime(2036, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC), 0
    while periods := following(last, now, 3600):
        assert len(periods) <= MOST
        for start, end in periods:
            assert start == last
            assert end - start == timedelta(hours=1)
            last, hours = end, hours + 1
    assert last == now
    assert hours == (365 * 10 + 2) * 24


lengths = st.sampled_from([1, 2, 60, 900, 3600, 7200, 86_400])


@given(st.lists(st.tuples(st.integers(1, 200_000), lengths), min_size=1, max_size=8))
def test_periods_tile_through_pauses_and_changes_of_their_length(steps: list[tuple[int, int]]) -> None:
    now, last = NOON, NOON
    for pause, length in steps:
        now += timedelta(seconds=pause)
        for start, end in following(last, now, length):
            assert start == last
            assert start < end <= now
            assert end - start <= timedelta(seconds=length)
            last = end
        assert last <= now or not pause


def test_a_tick_is_named_after_its_period() -> None:
    start = datetime(2026, 11, 21, 3, tzinfo=UTC)
    assert tick_id(start, start + timedelta(hours=1)) == "tick-20261121T030000Z-3600"


@pytest.mark.parametrize("seconds", [0, -1, 7, 5000, 86_401, 172_800])
def test_a_period_that_does_not_divide_a_day_is_refused(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILLING_PERIOD_SECONDS", str(seconds))
    with pytest.raises(ValidationError, match="period_seconds"):
        BillingSettings()
