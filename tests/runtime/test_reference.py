"""`.env.example` says what the settings classes say."""

from pathlib import Path

from runtime.reference import reference

ROOT = Path(__file__).parent.parent.parent


def test_the_example_is_what_the_settings_are() -> None:
    assert (ROOT / ".env.example").read_text() == reference(), "run `make gen`"
