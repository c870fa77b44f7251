"""What is sealed opens with its key and its context, and with nothing else."""

import pytest
from contracts.errors import InvalidInput
from runtime.seal import Seal


def test_it_opens_as_what_it_is() -> None:
    seal = Seal("a key of the tests")
    sealed = seal.close("pässword", "variables of app_1")
    assert "ssword" not in sealed
    assert seal.open(sealed, "variables of app_1") == "pässword"
    assert seal.close("pässword", "variables of app_1") != sealed


def test_it_opens_as_nothing_else() -> None:
    sealed = Seal("a key of the tests").close("password", "variables of app_1")
    altered = sealed[:-8] + ("A" if sealed[-8] != "A" else "B") + sealed[-7:]
    for key, text, context in (
        ("another key", sealed, "variables of app_1"),
        ("a key of the tests", sealed, "variables of app_2"),
        ("a key of the tests", altered, "variables of app_1"),
        ("a key of the tests", "no base64 at all", "variables of app_1"),
    ):
        with pytest.raises(InvalidInput):
            Seal(key).open(text, context)


def test_a_digest_is_the_same_for_the_same_and_tells_nothing() -> None:
    digest = Seal("a key of the tests").digest("password", "variables of app_1")
    assert Seal("a key of the tests").digest("password", "variables of app_1") == digest
    assert digest not in (
        Seal("another key").digest("password", "variables of app_1"),
        Seal("a key of the tests").digest("password", "variables of app_2"),
        Seal("a key of the tests").digest("passwords", "variables of app_1"),
    )
