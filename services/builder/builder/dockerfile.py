"""Which images a Dockerfile builds on, and what in it would make the engine run a customer's errand. PURE.

The engine takes a few hexadecimal digits for any image it has, also another customer's; it fetches an `ADD`ed
address from the host's own network. Both are refused here, before the engine reads a line. It reads a line as
this module does: what it could take otherwise (quotes, escapes) is refused too.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from builder.image_builder import StepFailed

_BLANK = re.compile(r"\s+")
_ESCAPE = re.compile(r"^\s*#\s*escape\s*=\s*(.*?)\s*$", re.IGNORECASE)
_FATEFUL = re.compile(r"^\s*(FROM|COPY|ADD|ONBUILD)\b", re.IGNORECASE)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::([-+])([^${}]*))?\})")
_REFERENCE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$")
_HEXADECIMAL = re.compile(r"^[0-9a-fA-F]{1,64}$")
# What an image has there is copied for every container that is made of it, before anybody can measure it.
MOST_VOLUMES = 8
_REMOTE = ("http://", "https://")
_QUOTING = "\"'`\\"


def bases(text: str, chosen: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The images a Dockerfile is built on or copies from, without `scratch` and its own stages.

    `chosen` are the build arguments: they go before what its ARGs say."""
    return _references(_instructions(text), chosen or {})


def marked(text: str, mark: str) -> tuple[str, int]:
    """With `mark` as the first instruction of every stage, and how many there are."""
    lines = text.split("\n")
    begins = [end for _, end, name, _ in _instructions(text) if name == "FROM"]
    for end in reversed(begins):
        if lines[end - 1].rstrip().endswith("\\"):
            raise _wrong(end, "ends with a backslash; take it away")
        lines.insert(end, mark)
    return "\n".join(lines), len(begins)


def renamed(text: str, names: Mapping[str, str], chosen: Mapping[str, str]) -> str:
    """With the images of `names` under the name that each has here; `chosen` as in `bases`."""
    lines = text.split("\n")
    for one in tuple(_named(_instructions(text), chosen)) if names else ():
        if one.reference not in names:
            continue
        word = re.compile(rf"(?<![^\s=]){re.escape(one.written)}(?!\S)")
        own = names[one.reference]
        for number in range(one.begin - 1, one.end):
            if lines[number].lstrip().startswith("#"):
                continue
            # A name has no backslash, which would mean something here.
            lines[number], count = word.subn(own, lines[number], count=1)
            if count:
                break
        else:
            raise _wrong(one.begin, "names a private image in an odd way; write its name plainly")
    return "\n".join(lines)


def triggers(lines: Iterable[str]) -> tuple[str, ...]:
    """The same of the ONBUILD instructions of a base image, which run as if they stood in the Dockerfile."""
    return _references(((0, 0, *_split(line)) for line in lines), {})


def _references(
    instructions: Iterable[tuple[int, int, str, str]], chosen: Mapping[str, str]
) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.reference for one in _named(instructions, chosen)))


@dataclass(frozen=True, slots=True)
class _Named:
    """An image, in lines `begin` to `end`: as it is written there, and what that stands for."""

    begin: int
    end: int
    written: str
    reference: str


def _named(instructions: Iterable[tuple[int, int, str, str]], chosen: Mapping[str, str]) -> Iterator[_Named]:
    stages: list[str] = []
    current: str | None = None
    arguments: dict[str, str] = {}
    volumes = 0
    for number, end, name, rest in instructions:
        match name:
            case "ARG" if current is None:
                arguments |= _arguments(rest, arguments, chosen)
            case "FROM":
                # A stage is known from the next one on: within itself, its name is an image's.
                if current is not None:
                    stages.append(current)
                words = [word for word in _BLANK.split(rest) if not word.startswith("--")]
                written = words[0] if words else ""
                reference = _expanded(number, written, arguments)
                if reference.lower() not in stages and reference != "scratch":
                    yield _Named(number, end, written, _checked(number, reference))
                current = words[2].lower() if len(words) == 3 else ""
            case "COPY" | "ADD":
                for reference in _copied_from(number, rest):
                    number_of = int(reference) if reference.isdecimal() else len(stages)
                    if reference.lower() not in stages and number_of >= len(stages):
                        yield _Named(number, end, reference, _checked(number, reference))
                if name == "ADD":
                    _refuse_remote(number, rest)
            case "VOLUME":
                # Each step after it would begin with a copy of what is there.
                volumes += len(_sources(rest))
                if volumes > MOST_VOLUMES:
                    raise _wrong(number, f"declares more than {MOST_VOLUMES} volumes")


def _instructions(text: str) -> Iterator[tuple[int, int, str, str]]:
    """(its first line's number, its last's, instruction in capitals, the rest): continued lines joined,
    comments left out."""
    begun, joined, ambiguous = 0, "", False
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        escape = _ESCAPE.match(line)
        if escape is not None and escape[1] != "\\":
            raise _wrong(number, "sets another escape character; leave that out")
        comment = line.lstrip().startswith("#")
        if ambiguous and _FATEFUL.match(line):
            raise _wrong(number, "can be read in two ways; remove comments and \\\\ from the lines before it")
        if comment or not line.strip():
            # Whether an indented comment ends a continued instruction differs between engines.
            ambiguous = ambiguous or (comment and begun > 0 and not line.startswith("#"))
            continue
        begun = begun or number
        # What else is blank makes the backslash before it a plain one.
        end = line.removesuffix("\r").rstrip(" \t")
        if end.endswith("\\"):
            joined += end.removesuffix("\\")
            # So does whether two backslashes continue it.
            ambiguous = ambiguous or end.endswith("\\\\")
            continue
        yield (begun, number, *_split(joined + line))
        begun, joined, ambiguous = 0, "", False
    if joined.strip():
        yield (begun, number, *_split(joined))


def _split(line: str) -> tuple[str, str]:
    words = _BLANK.split(line.strip(), maxsplit=1)
    name, rest = words[0].upper(), words[1] if len(words) > 1 else ""
    return _split(rest) if name == "ONBUILD" and rest else (name, rest)


def _arguments(rest: str, known: dict[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for word in _BLANK.split(rest):
        name, equals, value = word.partition("=")
        if name in chosen:
            values[name] = chosen[name]
        elif equals:
            if value[:1] in ('"', "'") and value[-1:] == value[:1] and len(value) > 1:
                value = value[1:-1]
            values[name] = _VARIABLE.sub(lambda match: _value(match, known | values), value)
    return values


def _expanded(number: int, word: str, arguments: dict[str, str]) -> str:
    reference = _VARIABLE.sub(lambda match: _value(match, arguments), word)
    if not reference:
        raise _wrong(number, "names no image to build FROM")
    if "$" in reference or any(character in reference for character in _QUOTING):
        raise _wrong(number, f"builds FROM {word[:200]!r}; write the image's name plainly")
    return reference


def _value(match: re.Match[str], arguments: dict[str, str]) -> str:
    value = arguments.get(match[1] or match[2], "")
    if match[3] == "-":
        return value or match[4]
    if match[3] == "+":
        return match[4] if value else ""
    return value


def _checked(number: int, reference: str) -> str:
    if not _REFERENCE.match(reference):
        raise _wrong(number, f"names the image {reference[:200]!r}, which is not a valid name")
    if _HEXADECIMAL.match(reference) or reference.lower().startswith("sha256:"):
        raise _wrong(number, f"names an image by the id {reference[:80]!r}; name it as repository:tag")
    return reference


def _copied_from(number: int, rest: str) -> Iterator[str]:
    for word in _BLANK.split(rest):
        if not word.startswith("--"):
            return
        if any(character in word for character in _QUOTING):
            raise _wrong(number, f"quotes the flag {word[:200]!r}; write it plainly")
        if word.lower().startswith("--from="):
            yield word[len("--from=") :]


def _refuse_remote(number: int, rest: str) -> None:
    for word in _sources(rest):
        plain = "".join(character for character in word if character not in _QUOTING).lower()
        literal = plain.partition("$")[0]
        open_ended = "$" in plain and any(scheme.startswith(literal) for scheme in _REMOTE)
        if literal.startswith(_REMOTE) or open_ended:
            raise _wrong(number, "uses ADD with an address; fetch it with `RUN curl` instead")


def _sources(rest: str) -> list[str]:
    words = [word for word in _BLANK.split(rest) if not word.startswith("--")]
    listed = " ".join(words)
    if listed.startswith("["):
        try:
            return [str(word) for word in json.loads(listed)]
        except ValueError:
            return words
    return words


def _wrong(number: int, why: str) -> StepFailed:
    where = f"line {number} of the Dockerfile" if number else "an ONBUILD instruction of the base image"
    return StepFailed("recipe", f"{where} {why}")
