"""Ids: a prefix that says what it names, then 26 characters that sort by time of creation.

`app_06f2…`: 48 bits of milliseconds and 80 random bits in Crockford's base 32 (a ULID in lower case).
Lower case and no separator but one underscore: such an id is also a valid label, key and subject token.
"""

import re
import secrets
import time
from typing import Annotated

from pydantic import StringConstraints

from contracts.shapes import shaped

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PATTERN = re.compile(r"^[a-z]{3}_[0-9a-hjkmnp-tv-z]{26}$")


# Two characters at a time: ids are made by the thousand.
_PAIRS = tuple(a + b for a in _ALPHABET for b in _ALPHABET)


def _encode(number: int, length: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(5 * length - 10, -1, -10)])


def new_id(prefix: str, at: float | None = None) -> str:
    milliseconds = int((time.time() if at is None else at) * 1000)
    return f"{prefix}_{_encode(milliseconds, 10)}{_encode(secrets.randbits(80), 16)}"


def is_id(text: str, prefix: str | None = None) -> bool:
    return bool(_PATTERN.match(text)) and (prefix is None or text.startswith(prefix + "_"))


def _typed(prefix: str) -> StringConstraints:
    return shaped(rf"^{prefix}_[0-9a-hjkmnp-tv-z]{{26}}$", f"an id that begins with {prefix}_")


AppId = Annotated[str, _typed("app")]
BuildId = Annotated[str, _typed("bld")]
CopyId = Annotated[str, _typed("cpy")]
CreditId = Annotated[str, _typed("crd")]
DeploymentId = Annotated[str, _typed("dep")]
EventId = Annotated[str, StringConstraints(min_length=1, max_length=80)]
InstanceId = Annotated[str, _typed("ins")]
JobId = Annotated[str, _typed("job")]
OrganizationId = Annotated[str, _typed("org")]
ProjectId = Annotated[str, _typed("prj")]
ReleaseId = Annotated[str, _typed("rel")]
SourceId = Annotated[str, _typed("src")]
UserId = Annotated[str, _typed("usr")]
VolumeId = Annotated[str, _typed("vol")]
SHORT_NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
SHORT_NAME_WORDS = "up to 40 lower-case letters, digits and dashes, with no dash at an end"
NodeName = Annotated[str, shaped(SHORT_NAME, SHORT_NAME_WORDS)]


def is_node_name(text: str) -> bool:
    return re.fullmatch(SHORT_NAME, text) is not None
