"""What instances write, on its way from their nodes to where it is kept.

A node hands over pieces: lines of one instance, in order, from behind one moment up to another. A piece is
kept when the one before it was, and once; whoever hands it over again hears how far it has come. The lines
themselves are packed, and nobody on the way looks into them.
"""

import zlib
from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

from pydantic import ConfigDict, Field, StringConstraints
from pydantic_core import from_json, to_json

from contracts.ids import AppId
from contracts.model import Model
from contracts.question import NodeQuery

# The process a node's agent runs in, in the place of an instance.
AGENT = "agent"
LINE_BYTES = 8_000
# Of all the pieces that are handed over at once, packed; and of one that is unpacked.
MOST_BYTES = 300_000
PIECE_LINES = 20_000
_UNPACKED = 8 * 1024 * 1024

# Since 1970.
Nanoseconds = Annotated[int, Field(ge=0, lt=2**63)]
LineStream = Literal["stdout", "stderr", "platform"]


class Line(NamedTuple):
    # In nanoseconds since 1970, as its engine says.
    at: int
    stream: LineStream
    text: str


class Piece(Model):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    instance: Annotated[str, StringConstraints(pattern=r"^(ins_[0-9a-z]{26}|agent)$")]
    # None: it belongs to no workload, but to the node itself.
    workload: AppId | None
    # Its place, such as web.1.
    process: Annotated[str, StringConstraints(max_length=90)]
    after: Nanoseconds
    upto: Nanoseconds
    # None of them: how far it has come is what is asked.
    lines: Annotated[int, Field(ge=0, le=PIECE_LINES)]
    body: Annotated[bytes, Field(max_length=MOST_BYTES)] = b""


class Kept(Model):
    # Instance -> up to which moment.
    kept: dict[str, int]
    # Not this node's to speak of.
    refused: tuple[str, ...] = ()


class KeepLines(NodeQuery[Kept]):
    """The answer follows what was kept."""

    owner, what, answer = "gateway", "keep_lines", Kept
    pieces: Annotated[tuple[Piece, ...], Field(max_length=1000)]


def packed(lines: Sequence[Line]) -> bytes:
    return zlib.compress(to_json(lines), 1)


def unpacked(body: bytes) -> list[Line]:
    # However much a node makes of little.
    text = zlib.decompressobj().decompress(body, _UNPACKED)
    return [Line(*line) for line in from_json(text)]
