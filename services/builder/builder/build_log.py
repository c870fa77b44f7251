"""The log of a build: numbered lines without a gap, stored first and reported live right after.

Only who holds the build's lease writes on, from where the row says the log ends; so a reader never sees two
stories under one number, whoever took over from whom. The stored log is the truth, the report a nudge. What
must not be shown is masked before anything else happens to a line.
"""

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from json.encoder import encode_basestring

from contracts.build_queries import BuildLogAfter, BuildLogPage
from contracts.errors import Unavailable
from contracts.reports import BuildLog, LogLine
from pydantic import TypeAdapter
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx
from sqlalchemy import update

from builder.image_builder import Say, Step, Stream
from builder.masking import Mask
from builder.tables import BuildRow, LogRow

_BATCH_SECONDS = 0.05
_LONGEST_LINE = 4000
# One message of the bus holds a megabyte.
_BATCH_BYTES = 400_000
_PAGE_BYTES = 600_000
# Who writes faster than we store waits.
_MOST_WAITING = 2_000_000
_TAIL = 40
_UNREAD_BYTES_A_SECOND = 5_000_000
# What no terminal shows, and halves of characters; colours begin with an escape, and stay.
_UNSHOWN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f\ud800-\udfff]")

_LINES: TypeAdapter[tuple[LogLine, ...]] = TypeAdapter(tuple[LogLine, ...])
_OPEN = ("queued", "building")

# Lines with their sequences, in JSON.
Batch = list[tuple[int, bytes]]
End = Callable[[Tx], Awaitable[None]]


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
        self._mask = Mask()
        # Each with its sequence, as it is stored and reported: fifty thousand may come in a second.
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._waiting_size = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._storing = asyncio.Lock()
        self.tail: deque[str] = deque(maxlen=_TAIL)

    def hide(self, mask: Mask) -> None:
        """From the next line on."""
        self._mask = mask

    def hide_also(self, secret: str) -> None:
        self._mask = self._mask.also(secret)

    def masked(self, text: str) -> str:
        """A text that leaves the build beside its log."""
        return self._mask.words(text)

    def of(self, step: Step) -> Say:
        async def say(stream: Stream, text: str) -> None:
            await self.write(step, stream, text)

        return say

    async def write(self, step: Step, stream: Stream, text: str) -> None:
        """One line, or several at once."""
        if self._full and stream != "platform":
            # Nobody will read it, and others build beside it: it is taken slowly, for a hint at the end.
            last = self._mask.lines(stream, "\n".join(text.rsplit("\n", _TAIL)[-_TAIL:]))
            self.tail.extend(clean(line) for line in last.split("\n"))
            await self._runtime.clock.sleep(len(text) / _UNREAD_BYTES_A_SECOND)
            return
        text = _UNSHOWN.sub("", self._mask.lines(stream, text))
        lines = [clean(line) for line in text.split("\n")]
        if stream == "platform":
            self._append(step, stream, lines)
        else:
            self.tail.extend(lines[-_TAIL:])
            self._output(step, stream, lines)
        if self._waiting_size > _MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    def _output(self, step: Step, stream: Stream, lines: list[str]) -> None:
        """It counts; what the platform itself says is little, and is never left out."""
        for number, line in enumerate(lines):
            self._bytes += len(line.encode()) + 1
            if self._bytes > self._largest:
                self._full = True
                self._append(step, stream, lines[:number])
                self._append(step, "platform", ["The log is too long; from here on the output is left out."])
                return
        self._append(step, stream, lines)

    def _append(self, step: Step, stream: Stream, lines: Sequence[str]) -> None:
        at = self._runtime.clock.now().isoformat().replace("+00:00", "Z")
        about = f'"at":"{at}","stream":"{stream}","step":"{step}","text":'
        for number, text in enumerate(lines, self._sequence + 1):
            line = f'{{"sequence":{number},{about}{encode_basestring(text)}}}'.encode()
            self._waiting.append((number, line))
            self._waiting_size += len(line)
        self._sequence += len(lines)
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

    async def flush(self, end: End | None = None) -> None:
        """`end`: what becomes of the build, in the transaction of its last lines."""
        async with self._storing:
            self._arrived.clear()
            while self._waiting or end is not None:
                batch = _batch(self._waiting)
                async with self._runtime.store.transaction(PLATFORM) as tx:
                    stored = await self._store(tx, batch) if batch else 0
                    if end is not None and len(batch) == len(self._waiting):
                        await end(tx)
                        end = None
                while self._waiting and self._waiting[0][0] <= stored:
                    self._waiting_size -= len(self._waiting.popleft()[1])
                if self._waiting_size < _MOST_WAITING // 2:
                    self._room.set()
                if batch:
                    await self._report(batch)

    async def _report(self, batch: Batch) -> None:
        envelope = BuildLog(build=self._build, deployment=self._deployment, lines=())
        text = envelope.model_dump_json().encode()
        assert text.endswith(b'"lines":[]}')
        await self._runtime.bus.report(envelope, text[: -len(b"[]}")] + _joined(batch) + b"}")

    async def _store(self, tx: Tx, batch: Batch) -> int:
        """Moves the end of the log on, which only the holder can, and only from where it is."""
        first, last = batch[0][0], batch[-1][0]
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
                lines=_joined(batch),
            )
        )
        return last


def _batch(waiting: deque[tuple[int, bytes]]) -> Batch:
    batch: Batch = []
    size = 0
    for line in waiting:
        size += len(line[1])
        if batch and size > _BATCH_BYTES:
            break
        batch.append(line)
    return batch


def _joined(batch: Batch) -> bytes:
    return b"[" + b",".join(line for _, line in batch) + b"]"


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
    text = text.rstrip("\r").rpartition("\r")[2]
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]} …"


_PAGE = """
select lines from (
    select first, lines, sum(octet_length(lines)) over (order by first) - octet_length(lines) as before
    from build_log where deployment = %s and first <= %s and first >= (
        select coalesce(max(first), 0) from build_log where deployment = %s and first <= %s
    )
) page where before < %s order by first
"""
_STANDING = "select state, log_sequence from build where deployment = %s"


async def answer(runtime: Runtime, question: BuildLogAfter) -> BuildLogPage:
    """`finished` once nothing can follow the last line of the page."""
    after, deployment = question.after, question.deployment
    async with runtime.store.transaction(PLATFORM) as tx:
        connection = await tx.connection()
        # Before the lines: what is stored after this look is in the next page.
        row = await (await connection.execute(_STANDING, (deployment,), prepare=True)).fetchone()
        if row is None:
            return BuildLogPage(lines=(), finished=False)
        state, end = row
        place = (deployment, after + question.limit, deployment, after + 1, _PAGE_BYTES)
        found = await (await connection.execute(_PAGE, place, prepare=True)).fetchall()
    chunks = (_LINES.validate_json(chunk) for (chunk,) in found)
    lines = [line for chunk in chunks for line in chunk if line.sequence > after][: question.limit]
    lines = _fitting(lines)
    last = lines[-1].sequence if lines else after
    return BuildLogPage(lines=tuple(lines), finished=state not in _OPEN and last >= end)


def _fitting(lines: list[LogLine]) -> list[LogLine]:
    """Those in front that fit into one message; the sizes in Postgres are bounds of whole chunks only."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line.model_dump_json())
        if number and size > _PAGE_BYTES:
            return lines[:number]
    return lines
