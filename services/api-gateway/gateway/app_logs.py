"""What an app's instances say, and a node: a page of it, and a stream that goes on as they speak.

Both are read from what is kept; the stream is told when there is more. A line's sequence is the event's id,
so a client that comes again goes on where it was (`Last-Event-ID`), without a gap and without a double.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import orjson
import structlog
from contracts.errors import InvalidInput, Unavailable
from contracts.lines import PIECE_LINES, Line, LineStream, unpacked
from contracts.lines_api import LinePage
from contracts.model import Moment
from contracts.reports import LinesKept
from contracts.shapes import shaped
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from nats.errors import Error as NatsError
from runtime.store import PLATFORM, scoped

from gateway import event_stream, workloads
from gateway.desk import Desk
from gateway.event_stream import Ansi, without_escapes
from gateway.lines import moment_of
from gateway.nodes import named
from gateway.permissions import Administrator, Member

log = structlog.get_logger("gateway.app_logs")

router = APIRouter(prefix="/api", tags=["logs"])

PAGE = 1000
# No sequence is as large.
_NEWEST = 2**53
_PIECES = 20
# Looked through for a page, however few lines fit the question.
_MOST_PIECES = 400
# In seconds: how often it is looked whether the process ends; when a report that was lost is made up for.
_LOOK = 1.0
_READ = 5.0
# Who follows one that says much is told a few times a second.
_BREATH = 0.1

_COLUMNS = "p.first, p.instance, p.process, p.body"
_OF = """
from piece p where scope.organization is not null and p.subject = %s
    and (%s::text is null or p.process = %s or p.process like %s || '.%%')
    and (%s::text is null or p.instance = %s) and (%s::timestamptz is null or p.last_at >= %s)
"""
_LATER = scoped(
    f"select {_COLUMNS} {_OF} and p.first > %s and p.first + p.lines - 1 > %s order by p.first limit %s"
)
_EARLIER = scoped(f"select {_COLUMNS} {_OF} and p.first < %s order by p.first desc limit %s")

_STREAM = event_stream.responses(
    "Events: `log` (a line, its id is its sequence), `reconnect` (come again with `Last-Event-ID`)."
)

Place = Annotated[int | None, Query(ge=0, lt=_NEWEST)]
Search = Annotated[str | None, Query(min_length=1, max_length=200)]
Process = Annotated[
    Annotated[
        str,
        shaped(
            r"^[a-z0-9][a-z0-9_-]{0,79}(\.[1-9]\d{0,2})?$",
            "a process such as web, or an instance such as web.1",
        ),
    ]
    | None,
    Query(),
]
Instance = Annotated[
    Annotated[str, shaped(r"^(ins_[0-9a-z]{26}|agent)$", "the id of an instance, or agent")] | None, Query()
]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines; everything that is None fits all."""

    process: str | None
    instance: str | None
    stream: str | None
    since: datetime | None
    search: str | None
    ansi: bool

    def shown(self, line: Line) -> str | None:
        """Its text, if it fits."""
        if self.stream not in (None, line.stream):
            return None
        if self.since is not None and moment_of(line.at) < self.since:
            return None
        text = line.text if self.ansi else without_escapes(line.text)
        return text if self.search is None or self.search.lower() in text.lower() else None


def wanted(
    *,
    process: Process = None,
    instance: Instance = None,
    stream: LineStream | None = None,
    since: Moment | None = None,
    search: Search = None,
    ansi: Ansi = False,
) -> Wanted:
    return Wanted(process, instance, stream, since, search, ansi)


Which = Annotated[Wanted, Depends(wanted)]
Most = Annotated[int, Query(ge=1, le=1000, description="Most lines of a page")]


@router.get("/paas/apps/{app}/logs", response_model=LinePage)
async def show_lines(
    app: str, caller: Member, which: Which, *, after: Place = None, before: Place = None, lines: Most = 100
) -> Response:
    """The newest lines; `after` a line those that follow, `before` one those that lead to it."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.known(tx, app)
    return await _page(Reader(caller.desk, caller.organization, app, which), after, before, lines)


@router.get("/paas/apps/{app}/logs/stream", response_class=StreamingResponse, responses=_STREAM)
async def stream_lines(
    app: str, request: Request, caller: Member, which: Which, *, after: Place = None, lines: Most = 100
) -> Response:
    """The newest lines, and those to come."""
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.known(tx, app)
    return _stream(Reader(caller.desk, caller.organization, app, which), request, after, lines)


@router.get("/admin/paas/nodes/{node}/logs", response_model=LinePage)
async def show_node_lines(
    node: str,
    caller: Administrator,
    which: Which,
    *,
    after: Place = None,
    before: Place = None,
    lines: Most = 100,
) -> Response:
    """What the node's agent says."""
    return await _page(Reader(caller.desk, PLATFORM, named(node), which), after, before, lines)


@router.get("/admin/paas/nodes/{node}/logs/stream", response_class=StreamingResponse, responses=_STREAM)
async def stream_node_lines(
    node: str,
    request: Request,
    caller: Administrator,
    which: Which,
    *,
    after: Place = None,
    lines: Most = 100,
) -> Response:
    return _stream(Reader(caller.desk, PLATFORM, named(node), which), request, after, lines)


async def _page(reader: "Reader", after: int | None, before: int | None, most: int) -> Response:
    if after is not None and before is not None:
        raise InvalidInput("a page is `after` a line or `before` one, not both")
    found = await reader.earlier(before, most) if after is None else await reader.later(after, most)
    page = {"lines": found.lines, "next": found.next, "earlier": found.earlier}
    return Response(orjson.dumps(page, option=orjson.OPT_UTC_Z), media_type="application/json")


def _stream(reader: "Reader", request: Request, after: int | None, most: int) -> Response:
    came_from = request.headers.get("last-event-id")
    start = event_stream.place(came_from, _NEWEST) if came_from else after
    return event_stream.answer(_events(reader, start, most))


async def _events(reader: "Reader", start: int | None, most: int) -> AsyncIterator[bytes]:
    desk, clock = reader.desk, reader.desk.clock
    yield event_stream.RETRY
    try:
        # Subscribed before it is read: what comes in between is told.
        async with desk.bus.subscribe_as(lambda told: told, LinesKept, reader.subject, 1) as told:
            page = await reader.earlier(None, most) if start is None else await reader.later(start, PAGE)
            end = said_at = clock.monotonic()
            end += desk.settings.stream_seconds
            while True:
                if page.lines:
                    said_at = clock.monotonic()
                    yield event_stream.logged(
                        (line["sequence"], orjson.dumps(line, option=orjson.OPT_UTC_Z)) for line in page.lines
                    )
                if clock.monotonic() >= end or desk.closing.is_set():
                    break
                if clock.monotonic() - said_at >= event_stream.KEEP_ALIVE:
                    said_at = clock.monotonic()
                    yield event_stream.STILL_HERE
                if page.complete:
                    await _more(desk, told)
                page = await reader.later(page.next, PAGE)
    except (Unavailable, NatsError) as error:
        log.info("a stream of lines ends", subject=reader.subject, error=str(error))
    # The client comes again by itself, and finds every line where it left off.
    yield event_stream.event("reconnect")


async def _more(desk: Desk, told: "asyncio.Queue[bytes]") -> None:
    """Returns when there is more, when a report may have been lost, and at a shutdown."""
    until = desk.clock.monotonic() + _READ
    while desk.clock.monotonic() < until and not desk.closing.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK):
                await told.get()
                break
    await desk.clock.sleep(_BREATH)


@dataclass(frozen=True, slots=True)
class Page:
    lines: list[dict[str, Any]]
    next: int
    earlier: int | None
    # There was nothing more in its direction.
    complete: bool


class Reader:
    """Of what one app's instances say, or one node. `scope`: whose rows."""

    def __init__(self, desk: Desk, scope: str, subject: str, which: Wanted) -> None:
        self.desk = desk
        self.subject = subject
        self._scope = scope
        self._which = which

    async def later(self, after: int, most: int) -> Page:
        found: list[dict[str, Any]] = []
        last = after
        for _ in range(_MOST_PIECES // _PIECES):
            rows = await self._read(_LATER, last - PIECE_LINES, last, _PIECES)
            for first, instance, process, body in rows:
                for sequence, line in enumerate(unpacked(body), first):
                    if sequence <= last:
                        continue
                    last = sequence
                    self._add(found, sequence, instance, process, line)
                    if len(found) == most:
                        return Page(found, last, after + 1 if after else None, complete=False)
            if len(rows) < _PIECES:
                return Page(found, last, after + 1 if after else None, complete=True)
        return Page(found, last, after + 1 if after else None, complete=False)

    async def earlier(self, before: int | None, most: int) -> Page:
        found: list[dict[str, Any]] = []
        oldest, newest = _NEWEST if before is None else before, 0
        for _ in range(_MOST_PIECES // _PIECES):
            rows = await self._read(_EARLIER, oldest, _PIECES)
            for first, instance, process, body in rows:
                lines = unpacked(body)
                for sequence, line in zip(
                    range(first + len(lines) - 1, first - 1, -1), reversed(lines), strict=True
                ):
                    if sequence >= oldest:
                        continue
                    oldest, newest = sequence, newest or sequence
                    self._add(found, sequence, instance, process, line)
                    if len(found) == most:
                        return Page(found[::-1], newest, oldest, complete=False)
            if len(rows) < _PIECES:
                return Page(found[::-1], newest, None, complete=True)
        return Page(found[::-1], newest, oldest, complete=False)

    async def _read(self, statement: str, *place: int) -> list[tuple[Any, ...]]:
        which = self._which
        return await self.desk.store.read(
            statement,
            (
                *(self._scope, self.subject, which.process, which.process, which.process),
                *(which.instance, which.instance, which.since, which.since, *place),
            ),
        )

    def _add(
        self, found: list[dict[str, Any]], sequence: int, instance: str, process: str, line: Line
    ) -> None:
        text = self._which.shown(line)
        if text is not None:
            found.append(
                {
                    "sequence": sequence,
                    "at": moment_of(line.at),
                    "instance": instance,
                    "process": process,
                    "stream": line.stream,
                    "text": text,
                }
            )
