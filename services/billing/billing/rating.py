"""PURE. What instances owe for a window of time: each second of a slot is paid once, by one instance.

Invariant: the paid seconds of a slot are exactly the whole seconds that one of its instances ran through,
whatever order the facts came in; and windows that tile add up to the whole, to the micro. Used by `charging`
for an ended period and by `wallet` for what has not been charged yet.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby

from contracts.money import Rate, charge_until

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Span:
    """An instance in its slot, from its start to its end; one that still runs has no end."""

    instance: str
    workload: str
    process: str
    index: int
    rate: Rate
    started_at: datetime
    ended_at: datetime | None

    @property
    def slot(self) -> tuple[str, str, int]:
        return self.workload, self.process, self.index

    @property
    def age(self) -> tuple[datetime, str]:
        """Orders the instances of a slot; the id decides between those that began in the same moment."""
        return self.started_at, self.instance


@dataclass(frozen=True, slots=True)
class Piece:
    """Seconds since the epoch, `first` included and `end` not, for which one instance pays."""

    span: Span
    first: int
    end: int

    @property
    def micros(self) -> int:
        # Counted from the instance's own start: wherever a piece is cut, its parts add up to it.
        start = _ceil(self.span.started_at)
        return charge_until(self.span.rate, self.end - start) - charge_until(
            self.span.rate, self.first - start
        )


@dataclass(frozen=True, slots=True)
class Line:
    instance: str
    workload: str
    seconds: int
    micros: int


def rate(spans: Iterable[Span], start: datetime, end: datetime) -> list[Line]:
    """What each instance owes for `[start, end)`; one that owes nothing has no line."""
    lines = []
    for _, slot in groupby(sorted(spans, key=lambda s: (s.slot, s.age)), key=lambda s: s.slot):
        pieces = sorted(pieces_of(list(slot), start, end), key=lambda p: p.span.age)
        for span, own in groupby(pieces, key=lambda p: p.span):
            parts = list(own)
            seconds = sum(p.end - p.first for p in parts)
            lines.append(Line(span.instance, span.workload, seconds, sum(p.micros for p in parts)))
    return lines


def pieces_of(slot: Sequence[Span], start: datetime, end: datetime) -> list[Piece]:
    """Who pays for which seconds of one slot: the newest of the instances that run in them.

    So a redeploy's overlap is paid once, by the new instance; and when a new one fails and goes, the old one
    that stayed pays again from there on.
    """
    earliest, latest = _ceil(start), _floor(end)
    pieces: list[Piece] = []
    # What newer instances pay for: apart from each other, in order, none beginning before the next span.
    taken: list[tuple[int, int]] = []
    for span in sorted(slot, key=lambda s: s.age, reverse=True):
        first = max(earliest, _ceil(span.started_at))
        last = latest if span.ended_at is None else min(latest, _floor(span.ended_at))
        if first >= last:
            continue
        at = first
        for taken_first, taken_end in taken:
            if at < min(taken_first, last):
                pieces.append(Piece(span, at, min(taken_first, last)))
            at = max(at, taken_end)
        if at < last:
            pieces.append(Piece(span, at, last))
        while taken and taken[0][0] <= last:
            last = max(last, taken.pop(0)[1])
        taken.insert(0, (first, last))
    return pieces


def differences(owed: Iterable[Line], charged: Mapping[str, Line]) -> list[Line]:
    """What must be charged, or given back, so that what has been charged becomes what is owed."""
    now = {line.instance: line for line in owed}
    found = []
    for instance in sorted(now.keys() | charged.keys()):
        new, old = now.get(instance), charged.get(instance)
        workload = (new or charged[instance]).workload
        seconds = (new.seconds if new else 0) - (old.seconds if old else 0)
        micros = (new.micros if new else 0) - (old.micros if old else 0)
        if seconds or micros:
            found.append(Line(instance, workload, seconds, micros))
    return found


# A second is paid when it was had whole: nobody ever pays for more time than has passed.
def _ceil(moment: datetime) -> int:
    return -((EPOCH - moment) // _SECOND)


def _floor(moment: datetime) -> int:
    return (moment - EPOCH) // _SECOND
