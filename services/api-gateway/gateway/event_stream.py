"""Logs as server-sent events: what the streams of lines have in common."""

import contextlib
import re
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

from contracts.errors import InvalidInput
from fastapi import Query
from fastapi.responses import StreamingResponse

# In seconds: how long the way to the client may be silent.
KEEP_ALIVE = 15.0
RETRY = b"retry: 1000\n\n"
STILL_HERE = b": still here\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_]|)")

Ansi = Annotated[bool, Query(description="Leave colours and other escape sequences of terminals in")]


class EventStream(StreamingResponse):
    """Closes its events with itself, however it ends: a subscription must not outlive its reader."""

    async def stream_response(self, send: Any) -> None:
        events = self.body_iterator
        assert isinstance(events, AsyncIterator)
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            await super().stream_response(send)


def answer(events: AsyncIterator[bytes]) -> EventStream:
    return EventStream(events, media_type="text/event-stream", headers=_HEADERS)


def responses(description: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": description,
        }
    }


def event(name: str, data: str = "{}") -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def logged(lines: Iterable[tuple[int, bytes]]) -> bytes:
    """Lines in JSON, with their sequences."""
    return b"".join([b"id: %d\nevent: log\ndata: %b\n\n" % line for line in lines])


def place(text: str, most: int = 2**31) -> int:
    """Where a client was; places are below `most`."""
    if text.isdecimal() and len(text) < 20 and int(text) < most:
        return int(text)
    raise InvalidInput("a place in a log is the sequence of a line", place=text[:40])


def without_escapes(text: str) -> str:
    return _ESCAPE.sub("", text) if "\x1b" in text else text
