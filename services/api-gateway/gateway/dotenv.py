"""Files of variables as people keep them (`.env`): read, and written without what is secret. PURE.

`NAME=value`, with or without `export`; a value in single quotes is taken as it stands, in double quotes with
escapes, either over several lines; `#` begins a comment. Nothing is expanded: a `$` is a dollar sign. An
error names a line and never repeats what stands on it.
"""

import re
from collections.abc import Sequence

from contracts.errors import InvalidInput
from contracts.variables import Variable

MASK = "********"

_NAME = re.compile(r"[ \t]*(?:export[ \t]+)?([^\s=#'\"]+)[ \t]*=[ \t]*")
_SKIPPED = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_PLAIN = re.compile(r"[^\n]*")
_COMMENT = re.compile(r"(?:^|[ \t])#.*$")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\n": "", '"': '"', "\\": "\\", "$": "$", "`": "`"}
_UNQUOTED = re.compile(r"[A-Za-z0-9_./:@%+,*-]+")


def parse(text: str) -> dict[str, str]:
    """A name that comes twice has its last value."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        skipped = _SKIPPED.match(text, place)
        if skipped is not None:
            place = skipped.end()
            continue
        name = _NAME.match(text, place)
        if name is None:
            raise _wrong(text, place, "is not of the form NAME=value")
        value, place = _value(text, name.end())
        found[name[1]] = value
    return found


def _value(text: str, place: int) -> tuple[str, int]:
    quote = text[place : place + 1]
    if quote not in ("'", '"') or not quote:
        plain = _PLAIN.match(text, place)
        assert plain is not None
        return _COMMENT.sub("", plain[0]).strip(), plain.end()
    quoted = (_SINGLE if quote == "'" else _DOUBLE).match(text, place)
    if quoted is None:
        raise _wrong(text, place, "begins a quoted value that never ends")
    rest = _SKIPPED.match(text, quoted.end())
    if rest is None:
        raise _wrong(text, quoted.end(), "goes on after the quoted value")
    value = quoted[1] if quote == "'" else _ESCAPE.sub(_unescaped, quoted[1])
    return value, rest.end()


def _unescaped(found: re.Match[str]) -> str:
    """What is no escape stays as it stands, backslash and all."""
    return _ESCAPED.get(found[1], found[0])


def _wrong(text: str, place: int, why: str) -> InvalidInput:
    line = text.count("\n", 0, place) + 1
    return InvalidInput(f"line {line} {why}; nothing was imported", line=line)


def render(variables: Sequence[Variable]) -> str:
    """Reads as the same again, but for the secrets, which are left out."""
    return "".join(f"{v.name}={MASK if v.secret else _written(v.value)}\n" for v in variables)


def _written(value: str) -> str:
    if _UNQUOTED.fullmatch(value):
        return value
    if "'" not in value and "\r" not in value:
        return f"'{value}'"
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        value = value.replace(plain, escaped)
    return f'"{value}"'
