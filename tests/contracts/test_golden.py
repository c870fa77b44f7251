"""What is on the wire stays readable: every event ever written in this shape must be read for ever.

A new field gets a default, and its golden file stays as it is. `make gen` writes files that are missing.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from contracts.events import EVENTS, BillingTick, Event, event_for
from contracts.model import Model
from contracts.reports import REPORTS, Report
from pydantic import ValidationError

from tests.contracts.samples import SAMPLES

GOLDEN = Path(__file__).parent / "golden"


def name(sample: Model) -> str:
    assert isinstance(sample, Event | Report)
    return type(sample).name


def kept(written: Any, golden: Any) -> Any:
    """What is written today, without the fields that have come since."""
    if isinstance(golden, dict):
        return {key: kept(written[key], golden[key]) for key in golden}
    if isinstance(golden, list):
        return [kept(*pair) for pair in zip(written, golden, strict=True)]
    return written


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_what_was_written_is_still_read(sample: Model) -> None:
    text = (GOLDEN / f"{name(sample)}.json").read_text()
    assert type(sample).model_validate_json(text) == sample
    # Nothing that was once sent may vanish or change its meaning.
    assert kept(json.loads(sample.model_dump_json()), json.loads(text)) == json.loads(text)


@pytest.mark.parametrize("sample", SAMPLES, ids=name)
def test_a_newer_sender_is_understood(sample: Model) -> None:
    newer = json.loads(sample.model_dump_json()) | {"a_field_of_tomorrow": {"x": 1}}
    assert type(sample).model_validate_json(json.dumps(newer)) == sample


def test_every_event_and_report_has_a_golden_file_and_no_file_is_left_over() -> None:
    assert {name(sample) for sample in SAMPLES} == {e.name for e in EVENTS} | {r.name for r in REPORTS}
    assert {path.stem for path in GOLDEN.iterdir()} == {name(sample) for sample in SAMPLES}


@pytest.mark.parametrize("sample", [s for s in SAMPLES if isinstance(s, Event)], ids=name)
def test_the_subject_leads_back_to_the_event(sample: Event) -> None:
    assert event_for(sample.subject()) is type(sample)


def test_events_cannot_be_changed_once_made() -> None:
    with pytest.raises(ValidationError):
        SAMPLES[0].id = "other"  # type: ignore[attr-defined]


def test_a_moment_without_a_zone_is_refused() -> None:
    text = json.loads((GOLDEN / "billing.tick.json").read_text()) | {"period_start": "2026-01-01T00:00:00"}
    with pytest.raises(ValidationError, match="time zone"):
        BillingTick.model_validate(text)
