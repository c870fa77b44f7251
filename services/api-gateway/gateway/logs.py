"""The log of a deployment: a page of it, and a stream of it that goes on while it is written.

The stream joins what the builder has stored with what it reports live, by sequence: no gap, no double. The
sequence is the event's id, so a client that comes again goes on where it was (`Last-Event-ID`). Lines go on
as many at once as came together, and few wait for a slow reader: what he misses he gets from the store.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Annotated

import orjson
from contracts.api import LogPage
from contracts.build_queries import BuildLogAfter, BuildLogPage
from contracts.errors import NotFound, Unavailable
from contracts.reports import BuildLog, LogLine
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from nats.errors import Error as NatsError

from gateway import deployments, event_stream, jobs, status
from gateway.desk import Desk
from gateway.event_stream import Ansi, without_escapes
from gateway.permissions import Member

router = APIRouter(prefix="/api/paas", tags=["deployments"])

PAGE = 1000
# In seconds: how often the status is looked at; how long a lost report may go unnoticed.
_LOOK = 1.0
_READ = 5.0
# Reports of some thousand lines at most, for every reader.
_WAITING = 8
RELEASE = "release"
After = Annotated[int, Query(ge=0, lt=2**31)]

# With their sequences, in JSON.
Lines = list[tuple[int, bytes]]

_STREAM = event_stream.responses(
    "Events: `log` (a line, its id is its sequence), `status` (of the deployment, when it changes), "
    "`end` (the same, and nothing follows), `reconnect` (come again with `Last-Event-ID`)."
)


@router.get("/deployments/{deployment}/log")
async def show_log(deployment: str, caller: Member, after: After = 0, ansi: Ansi = False) -> LogPage:
    state, _ = await deployments.standing(caller.desk.store, caller.organization, deployment)
    built = await deployments.built_as(caller.desk.store, caller.organization, deployment)
    page = await _page(caller.desk, caller.organization, built, after)
    last = page.lines[-1].sequence if page.lines else after
    # A build that has ended may be followed by a release phase.
    finished = page.finished and state in status.SETTLED
    lines = page.lines if ansi else tuple(_plain(page.lines))
    return LogPage(lines=lines, finished=finished, next=last)


@router.get("/deployments/{deployment}/log/stream", response_class=StreamingResponse, responses=_STREAM)
async def stream_log(
    deployment: str, request: Request, caller: Member, after: After = 0, ansi: Ansi = False
) -> Response:
    built = await deployments.built_as(caller.desk.store, caller.organization, deployment)
    start = event_stream.place(request.headers.get("last-event-id") or str(after))
    tail = Tail(caller.desk, caller.organization, deployment, built, start, ansi=ansi)
    return event_stream.answer(tail.events())


class Tail:
    """One reader's place in the log of one deployment."""

    def __init__(
        self, desk: Desk, organization: str, deployment: str, built: str, start: int, *, ansi: bool
    ) -> None:
        self._desk = desk
        self._ansi = ansi
        self._organization = organization
        self._deployment = deployment
        # Whose build's log it is.
        self._built = built
        self._last = start
        # Live lines from beyond a gap.
        self._ahead: dict[int, bytes] = {}

    async def events(self) -> AsyncIterator[bytes]:
        yield event_stream.RETRY
        try:
            # Subscribed before the stored lines are read: what is written in between comes both ways.
            async with self._desk.bus.subscribe_as(self._reported, BuildLog, self._built, _WAITING) as live:
                async for event in self._follow(live):
                    yield event
        except (Unavailable, NatsError):
            # The client comes again by itself, and finds every line where it left off.
            yield event_stream.event("reconnect")

    async def _follow(self, live: "asyncio.Queue[Lines]") -> AsyncIterator[bytes]:
        clock = self._desk.clock
        end = clock.monotonic() + self._desk.settings.stream_seconds
        told, said_at, read_at = "", clock.monotonic(), -_READ
        while True:
            # The status first: once it is final every line is stored, and the reading after it complete.
            state, text = await deployments.standing(self._desk.store, self._organization, self._deployment)
            final = state in status.SETTLED
            complete = False
            patience = _READ if state in status.WAITING else _LOOK
            if final or self._ahead or clock.monotonic() - read_at >= patience:
                read_at = clock.monotonic()
                try:
                    async for lines in self._stored():
                        said_at = clock.monotonic()
                        yield event_stream.logged(lines)
                    complete = True
                except Unavailable:
                    yield b": the stored log cannot be read now\n\n"
            if final and complete:
                yield event_stream.event("end", text)
                return
            if text != told:
                told, said_at = text, clock.monotonic()
                yield event_stream.event("status", text)
            if clock.monotonic() >= end or self._desk.closing.is_set():
                yield event_stream.event("reconnect")
                return
            if clock.monotonic() - said_at >= event_stream.KEEP_ALIVE:
                said_at = clock.monotonic()
                yield event_stream.STILL_HERE
            async for lines in self._live(live, clock.monotonic() + _LOOK):
                said_at = read_at = clock.monotonic()
                yield event_stream.logged(lines)

    async def _stored(self) -> AsyncIterator[Lines]:
        while True:
            page = await _page(self._desk, self._organization, self._built, self._last)
            shown = page.lines if self._ansi else _plain(page.lines)
            if lines := self._joined((line.sequence, line.model_dump_json().encode()) for line in shown):
                yield lines
            if page.finished or not page.lines:
                return

    async def _live(self, live: "asyncio.Queue[Lines]", until: float) -> AsyncIterator[Lines]:
        """Lines as they come; ends at a gap, when it is time to look around, and at a shutdown."""
        while not self._desk.closing.is_set():
            try:
                async with asyncio.timeout(until - self._desk.clock.monotonic()):
                    report = await live.get()
            except TimeoutError:
                return
            if lines := self._joined(report):
                yield lines
            if self._ahead:
                return

    def _reported(self, report: bytes) -> Lines:
        """Past the models: they take longer for each of many lines than all the rest of it."""
        lines = orjson.loads(report)["lines"]
        if not self._ansi and rb"\u001b" in report:
            for line in lines:
                line["text"] = without_escapes(line["text"])
        return [(line["sequence"], orjson.dumps(line)) for line in lines]

    def _joined(self, lines: Iterable[tuple[int, bytes]]) -> Lines:
        """What may be said now that these are here: every sequence once, and in order."""
        said = []
        for sequence, line in lines:
            if sequence == self._last + 1:
                self._last = sequence
                said.append((sequence, line))
            elif sequence > self._last:
                self._ahead[sequence] = line
        while (following := self._ahead.pop(self._last + 1, None)) is not None:
            self._last += 1
            said.append((self._last, following))
        for passed in [sequence for sequence in self._ahead if sequence <= self._last]:
            del self._ahead[passed]
        return said


async def _page(desk: Desk, organization: str, deployment: str, after: int) -> BuildLogPage:
    """Lines of the build, and behind its last one those of the release phase."""
    release = await jobs.release_phase(desk.store, organization, deployment)
    if release is None or after < release.build_lines:
        try:
            page = await desk.bus.ask(BuildLogAfter(deployment=deployment, after=after, limit=PAGE))
        except NotFound:
            # No builder has taken it up yet, or none ever will.
            page = BuildLogPage(lines=(), finished=False)
        if release is None or not page.lines or page.lines[-1].sequence < release.build_lines:
            return page
        lines = page.lines
    else:
        lines = ()
    assert release is not None, "one without a release phase has returned"
    built = release.build_lines
    written = await jobs.lines_after(desk.store, organization, release.job, max(0, after - built))
    room = PAGE - len(lines)
    more = tuple(
        LogLine(sequence=built + w.sequence, at=w.at, stream=w.stream, step=RELEASE, text=w.text)
        for w in written[:room]
    )
    return BuildLogPage(lines=lines + more, finished=release.ended and len(written) < room)


def _plain(lines: Iterable[LogLine]) -> Iterable[LogLine]:
    return (
        line.model_copy(update={"text": without_escapes(line.text)}) if "\x1b" in line.text else line
        for line in lines
    )
