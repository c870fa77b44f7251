"""Ids, money, errors, specifications."""

import time
from typing import Any

import pytest
from contracts import errors
from contracts.api import ChooseHealth, CreateOrganization
from contracts.build_api import ChooseBuild
from contracts.errors import BUG, DISPOSITIONS, BerthError, disposition
from contracts.ids import is_id, new_id
from contracts.jobs_api import Execute
from contracts.model import Strict
from contracts.money import Money, Rate, charge_until
from contracts.workload import Process, Slot
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.contracts.samples import SPEC


def test_ids_sort_by_time_and_name_what_they_are() -> None:
    now = time.time()
    made = [new_id("app", now + second) for second in range(50)]
    assert made == sorted(made)
    assert len({new_id("app", now) for _ in range(1000)}) == 1000
    assert all(is_id(one, "app") for one in made)
    assert not is_id("app_short")
    assert not is_id(new_id("org"), "app")


@given(st.integers(0, 10**9), st.lists(st.integers(0, 100_000), min_size=1, max_size=20))
def test_parts_of_an_hour_add_up_to_the_whole(rate: int, parts: list[int]) -> None:
    price = Rate(micros_per_hour=rate, currency="USD")
    total = charged = 0
    for seconds in parts:
        charged += charge_until(price, total + seconds) - charge_until(price, total)
        total += seconds
    assert charged == charge_until(price, total)
    assert charge_until(price, 3600) == rate


def test_money_of_two_currencies_does_not_add() -> None:
    with pytest.raises(ValueError, match="cannot add EUR to USD"):
        Money(micros=1, currency="USD") + Money(micros=1, currency="EUR")
    assert str(Money(micros=-1_500_000, currency="USD")) == "-1.500000 USD"


def test_no_float_becomes_money() -> None:
    with pytest.raises(ValidationError):
        Money(micros=1.5, currency="USD")


def test_every_error_has_a_row_in_the_table() -> None:
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, BerthError) and kind is not BerthError
    }
    assert kinds == set(DISPOSITIONS)
    assert disposition(ZeroDivisionError()) is BUG
    assert len({row.code for row in DISPOSITIONS.values()}) == len(DISPOSITIONS)


def test_a_fingerprint_changes_only_with_what_an_instance_is_made_of() -> None:
    same = SPEC.model_copy(update={"generation": 9, "deployment": None})
    more = SPEC.model_copy(
        update={"processes": {**SPEC.processes, "web": Process(command="python app.py", replicas=9)}}
    )
    other = SPEC.model_copy(update={"image": "sha256:ff"})
    assert SPEC.fingerprint() == same.fingerprint() == more.fingerprint()
    assert SPEC.fingerprint() != other.fingerprint()
    requests = SPEC.limits.model_copy(update={"memory_request_mb": 64})
    assert SPEC.fingerprint() != SPEC.model_copy(update={"limits": requests}).fingerprint()
    # What runs is not replaced because the platform is a newer one.
    assert SPEC.fingerprint() == "2e3eb89f4bc6ba03"
    assert str(Slot(process="web", index=0)) == "web.1"


@pytest.mark.parametrize(
    ("model", "wrong"),
    [
        (ChooseHealth, {"kind": "command", "command": ("sh", "a\0b")}),
        (ChooseBuild, {"arguments": {"A": "a\0b"}}),
        (Execute, {"command": ("sh", "a\0b")}),
        (CreateOrganization, {"name": "a\0b"}),
    ],
)
def test_what_is_sent_holds_no_nul_wherever(model: type[Strict], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="NUL"):
        model.model_validate(wrong)
