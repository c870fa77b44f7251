"""The log of a build: numbered lines without a gap, stored first and reported live right after.

Only who holds the build's lease writes on, from where the row says the log ends; so a reader never sees two
stories under one number, whoever took over from whom. The stored log is the truth, the report a nudge.
"""

import asyncio
from collections import deque

from contracts.errors import Unavailable
from contracts.queries import BuildLogAfter, BuildLogPage
from contracts.reports import BuildLog, LogLine
from pydantic import TypeAdapter
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx
from sqlalchemy import select, update

from builder.image_builder import Say, Step, Stream
from builder.tables import BuildRow, LogRow

_BATCH_SECONDS = 0.05
_LONGEST_LINE = 4000
# One message of the bus holds a megabyte.
_BATCH_BYTES = 200_000
_PAGE_BYTES = 600_000
_CHUNKS_AT_ONCE = 20
# Who writes faster than we store waits.
_MOST_WAITING = 5000
_TAIL = 40

_LINES: TypeAdapter[tuple[LogLine, ...]] = TypeAdapter(tuple[LogLine, ...])
_OPEN = ("queued", "building")


class LeaseLost(Exception):
    """The build belongs to somebody else now, or to nobody: whatever is under way must stop."""


class LogWriter:
    """Of one attempt. `write` returns at once unless too much waits; `flush` when all is stored."""

    def __init__(self, runtime: Runtime, build: BuildRow, holder: str, largest: int) -> None:
        self._runtime = runtime
        self._build = build.id
        self._deployment = build.deployment
        self._organization = build.organization
        self._holder = holder
        self._largest = largest
        self._bytes = build.log_bytes
        self._sequence = build.log_sequence
        self._full = build.log_bytes > largest
        self._waiting: deque[tuple[LogLine, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._storing = asyncio.Lock()
        self.tail: deque[str] = deque(maxlen=_TAIL)

    def of(self, step: Step) -> Say:
        async def say(stream: Stream, text: str) -> None:
            await self.write(step, stream, text)

        return say

    async def write(self, step: Step, stream: Stream, text: str) -> None:
        for line in text.split("\n"):
            self._append(step, stream, clean(line))
        if len(self._waiting) > _MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    def _append(self, step: Step, stream: Stream, text: str) -> None:
        if stream != "platform":
            self.tail.append(text)
            self._bytes += len(text.encode()) + 1
            if self._bytes > self._largest:
                if self._full:
                    return
                self._full = True
                stream, text = "platform", "The log is too long; from here on the output is left out."
        self._sequence += 1
        now = self._runtime.clock.now()
        line = LogLine(sequence=self._sequence, at=now, stream=stream, step=step, text=text)
        self._waiting.append((line, line.model_dump_json().encode()))
        self._arrived.set()

    async def run(self) -> None:
        """Stores and reports until it is cancelled; ends with LeaseLost when the lease is."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            try:
                await self.flush()
            except Unavailable:
                # The database comes back, or the lease runs out; what is written meanwhile waits.
                self._arrived.set()

    async def flush(self) -> None:
        async with self._storing:
            self._arrived.clear()
            while self._waiting:
                batch = _batch(self._waiting)
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    stored = await self._store(tx, batch)
                while self._waiting and self._waiting[0][0].sequence <= stored:
                    self._waiting.popleft()
                if len(self._waiting) < _MOST_WAITING // 2:
                    self._room.set()
                lines = tuple(line for line, _ in batch)
                await self._runtime.bus.report(
                    BuildLog(build=self._build, deployment=self._deployment, lines=lines)
                )

    async def _store(self, tx: Tx, batch: list[tuple[LogLine, bytes]]) -> int:
        """Moves the end of the log on, which only the holder can, and only from where it is."""
        first, last = batch[0][0].sequence, batch[-1][0].sequence
        moved = await tx.execute(
            update(BuildRow)
            .where(
                BuildRow.id == self._build,
                BuildRow.lease_holder == self._holder,
                BuildRow.state == "building",
                BuildRow.log_sequence == first - 1,
            )
            .values(log_sequence=last, log_bytes=self._bytes)
            .returning(BuildRow.id)
        )
        if moved.first() is None:
            row = await tx.get(BuildRow, self._build)
            if row is None or row.lease_holder != self._holder or row.log_sequence < first:
                raise LeaseLost(f"{self._build} is no longer {self._holder}'s")
            # An earlier commit went through although its answer got lost.
            return row.log_sequence
        tx.add(
            LogRow(
                deployment=self._deployment,
                first=first,
                last=last,
                organization=self._organization,
                lines=b"[" + b",".join(text for _, text in batch) + b"]",
            )
        )
        return last


def _batch(waiting: deque[tuple[LogLine, bytes]]) -> list[tuple[LogLine, bytes]]:
    batch: list[tuple[LogLine, bytes]] = []
    size = 0
    for line in waiting:
        size += len(line[1])
        if batch and size > _BATCH_BYTES:
            break
        batch.append(line)
    return batch


def append(tx: Tx, row: BuildRow, line: LogLine) -> None:
    """The last word about a build nobody holds; its row is locked by the caller."""
    tx.add(
        LogRow(
            deployment=row.deployment,
            first=line.sequence,
            last=line.sequence,
            organization=row.organization,
            lines=_LINES.dump_json((line,)),
        )
    )
    row.log_sequence = line.sequence


def clean(text: str) -> str:
    """A line as a terminal would leave it: what a carriage return overwrote is gone, colours stay."""
    text = text.rstrip("\r").rpartition("\r")[2].replace("\x00", "")
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} …"


async def answer(runtime: Runtime, question: BuildLogAfter) -> BuildLogPage:
    """`finished` once nothing can follow the last line of the page."""
    lines: list[LogLine] = []
    size = 0
    async with runtime.store.transaction(PLATFORM) as tx:
        # Before the lines: what is stored after this look is in the next page.
        row = await tx.one(select(BuildRow).where(BuildRow.deployment == question.deployment))
        if row is None:
            return BuildLogPage(lines=(), finished=False)
        after = question.after
        while after < row.log_sequence and len(lines) < question.limit and size < _PAGE_BYTES:
            chunks = await tx.scalars(
                select(LogRow)
                .where(LogRow.deployment == question.deployment, LogRow.last > after)
                .order_by(LogRow.first)
                .limit(_CHUNKS_AT_ONCE)
            )
            if not chunks:
                break
            for line in (line for chunk in chunks for line in _LINES.validate_json(chunk.lines)):
                if line.sequence <= after or len(lines) == question.limit or size >= _PAGE_BYTES:
                    continue
                lines.append(line)
                size += len(line.model_dump_json())
                after = line.sequence
    return BuildLogPage(lines=tuple(lines), finished=row.state not in _OPEN and after >= row.log_sequence)
