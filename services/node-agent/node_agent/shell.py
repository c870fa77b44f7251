"""A command in a shell, started so that whoever stops the instance reaches the command and not the shell
alone. PURE.

A shell that is asked to stop ends at once, and what it had begun is killed without a word. So a plain command
takes its place. With anything else the whole group of processes is told, as a terminal tells it of Ctrl-C;
the shell waits for what it has begun, and begins nothing more. Used by `docker_engine`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SHELL = "/bin/sh"
_SHELLS = ("/bin/sh", "sh", "/bin/bash", "bash", "/bin/ash")
# Nothing but words: no list, pipe, redirection, group or substitution. `$PORT` is a word.
_PLAIN = re.compile(r"[^;&|<>()`\n#{}!]+")
_OWN = frozenset(
    (
        *(".", ":", "alias", "bg", "break", "case", "cd", "command", "continue", "eval", "exec", "exit"),
        *("export", "fg", "for", "getopts", "hash", "if", "jobs", "local", "read", "readonly", "return"),
        *("set", "shift", "source", "time", "times", "trap", "type", "ulimit", "umask", "unalias"),
        *("unset", "until", "wait", "while"),
    )
)
_ASSIGNMENT = re.compile(r"\w+=")
# Tells the engine's init that a signal is for the group, and not for its child alone.
_GROUP = {"TINI_KILL_PROCESS_GROUP": "1"}
_WAIT = "unset TINI_KILL_PROCESS_GROUP; trap exit INT QUIT TERM\n"


@dataclass(frozen=True, slots=True)
class Start:
    # None: the image's own.
    entrypoint: list[str] | None = None
    command: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def start(command: str, shell: str = SHELL) -> Start:
    if is_plain(command):
        return Start([shell, "-c"], [f"exec {command.strip()}"])
    return Start([shell, "-c"], [_WAIT + command], _GROUP)


def start_of(image: Mapping[str, Any]) -> Start:
    """Of an image's own command, by its configuration. Where it is none in a shell it stays as it is: nobody
    knows whether it wants more than its first process to be told."""
    argv = [*(image.get("Entrypoint") or ()), *(image.get("Cmd") or ())]
    if len(argv) == 3 and argv[0] in _SHELLS and argv[1] == "-c":
        return start(argv[2], argv[0])
    return Start()


def is_plain(command: str) -> bool:
    words = command.split()
    return (
        bool(words)
        and _PLAIN.fullmatch(command.strip()) is not None
        and words[0] not in _OWN
        and _ASSIGNMENT.match(words[0]) is None
    )
