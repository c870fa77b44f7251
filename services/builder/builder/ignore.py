"""What a .dockerignore leaves out of a build's context. PURE.

The engine's own client does this, and so must we. A customer writes the patterns: they are matched part by
part, in time that grows with their length and no faster.
"""

import fnmatch
import re
from dataclasses import dataclass

_MOST = 500


@dataclass(frozen=True, slots=True)
class _Pattern:
    negated: bool
    # None stands for `**`: any number of folders.
    parts: tuple[re.Pattern[str] | None, ...]

    def matches(self, path: list[str]) -> bool:
        """The path, or a folder it lies in."""
        reached = self._closed({0})
        for part in path:
            onward = set()
            for place in reached:
                if place == len(self.parts):
                    continue
                pattern = self.parts[place]
                if pattern is None:
                    onward.add(place)
                elif pattern.match(part):
                    onward.add(place + 1)
            reached = self._closed(onward)
            if len(self.parts) in reached:
                return True
        return False

    def _closed(self, places: set[int]) -> set[int]:
        for start in sorted(places):
            end = start
            while end < len(self.parts) and self.parts[end] is None:
                end += 1
            places.update(range(start, end + 1))
        return places


class Ignore:
    def __init__(self, text: str) -> None:
        self._patterns = [_pattern(line) for line in _lines(text)][:_MOST]

    def leaves_out(self, name: str) -> bool:
        path, out = name.split("/"), False
        for pattern in self._patterns:
            if pattern.negated == out and pattern.matches(path):
                out = not out
        return out


def _lines(text: str) -> list[str]:
    lines = (line.strip() for line in text.removeprefix("\ufeff").split("\n") if not line.startswith("#"))
    return [line for line in lines if line.strip("!/. ")]


def _pattern(line: str) -> _Pattern:
    negated = line.startswith("!")
    words = [part for part in line.removeprefix("!").strip().split("/") if part not in ("", ".")]
    return _Pattern(
        negated,
        tuple(
            None if part == "**" else re.compile(fnmatch.translate(part.replace("[^", "[!")), re.DOTALL)
            for part in words
        ),
    )
