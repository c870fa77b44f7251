"""Shapes of text, each with the words for whoever sends another."""

from pydantic import StringConstraints

# By pattern: all that is known of a refused text is the pattern it did not match.
WORDS: dict[str, str] = {}


def shaped(
    pattern: str, words: str, *, max_length: int | None = None, to_lower: bool | None = None
) -> StringConstraints:
    assert WORDS.setdefault(pattern, words) == words, f"{pattern} has two descriptions"
    return StringConstraints(pattern=pattern, max_length=max_length, to_lower=to_lower)
