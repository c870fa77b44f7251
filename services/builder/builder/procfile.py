"""The Procfile: process type -> command. PURE."""

import re

from builder.image_builder import StepFailed

_LINE = re.compile(r"^([^:\s]+)\s*:\s*(.*)$")
_NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,38}$")
_MOST = 20
_LONGEST = 2000


def parse(text: str) -> dict[str, str]:
    processes: dict[str, str] = {}
    for number, raw in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        line = raw.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        if any(ord(character) < 32 or ord(character) == 127 for character in line):
            raise _wrong(number, "has a control character; write the command as plain text")
        found = _LINE.match(line)
        if found is None:
            raise _wrong(number, "is not of the form `web: command`")
        name, command = found[1], found[2].strip()
        if not _NAME.match(name):
            raise _wrong(number, f"names a process {name[:60]!r}; use lower-case letters, digits, - and _")
        if name in processes:
            raise _wrong(number, f"names the process {name!r} a second time")
        if not command:
            raise _wrong(number, f"gives the process {name!r} no command")
        if len(command) > _LONGEST:
            raise _wrong(number, f"has more than {_LONGEST} characters; put the command into a script")
        processes[name] = command
    if len(processes) > _MOST:
        raise StepFailed("recipe", f"the Procfile names more than {_MOST} processes")
    return processes


def _wrong(number: int, why: str) -> StepFailed:
    return StepFailed(
        "recipe",
        f"line {number} of the Procfile {why}",
        hint="A Procfile has one process a line, such as `web: gunicorn app:app --bind 0.0.0.0:$PORT`.",
    )
