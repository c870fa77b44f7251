"""The output of a job as lines: those nobody has been told yet, the last ones, and how many there were."""

from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal

from contracts.jobs import LINE_BYTES, OUTPUT_LINES, TAIL_LINES, JobLine

Stream = Literal["stdout", "stderr", "platform"]

# Of what is written faster than it is told the oldest is not told live.
_UNSAID = 2_000
_AT_ONCE = 200
_TAIL_BYTES = 64 * 1024


class Output:
    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._parts: dict[Stream, bytes] = {}
        self._tail: deque[JobLine] = deque(maxlen=TAIL_LINES)
        self._unsaid: deque[JobLine] = deque(maxlen=_UNSAID)
        self.lines = 0

    @property
    def tail(self) -> tuple[JobLine, ...]:
        size, lines = 0, []
        for line in reversed(self._tail):
            size += len(line.text)
            if size > _TAIL_BYTES:
                break
            lines.append(line)
        return tuple(reversed(lines))

    @property
    def kept_tail(self) -> tuple[JobLine, ...]:
        """What of the tail is among the lines that are kept live."""
        return tuple(line for line in self.tail if line.sequence <= OUTPUT_LINES)

    def unsaid(self) -> Iterator[tuple[JobLine, ...]]:
        """Each line once, as many at a time as a message surely holds."""
        while self._unsaid:
            size, lines = 0, list[JobLine]()
            while self._unsaid and len(lines) < _AT_ONCE and size < _TAIL_BYTES:
                lines.append(self._unsaid.popleft())
                size += len(lines[-1].text)
            yield tuple(lines)

    def add(self, stream: Stream, data: bytes) -> None:
        *whole, rest = (self._parts.pop(stream, b"") + data).split(b"\n")
        for line in whole:
            self._line(stream, line)
        while len(rest) > LINE_BYTES:
            self._line(stream, rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        if rest:
            self._parts[stream] = rest

    def end(self) -> None:
        for stream, rest in sorted(self._parts.items()):
            self._line(stream, rest)
        self._parts.clear()

    def _line(self, stream: Stream, line: bytes) -> None:
        self.lines += 1
        text = line[:LINE_BYTES].decode(errors="replace").rstrip("\r").replace("\0", "\ufffd")
        written = JobLine(sequence=self.lines, at=self._now(), stream=stream, text=text)
        self._tail.append(written)
        if written.sequence <= OUTPUT_LINES:
            self._unsaid.append(written)
