"""PURE. The periods usage is charged in: each begins where the one before it ended, so they tile.

Their borders lie on a grid that begins with the epoch, in UTC. When an operator changes the length of a
period, the next one ends at the first border of the new grid. Used by `charging`.
"""

from datetime import UTC, datetime, timedelta

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# The first period of all reaches so far back, for what ran before billing did; `metering` believes in
# nothing older.
OPENING = timedelta(days=35)
MOST = 100


def following(last_end: datetime | None, now: datetime, seconds: int) -> list[tuple[datetime, datetime]]:
    """The periods that have ended since, in order, at most `MOST` of them."""
    length = timedelta(seconds=seconds)
    border = EPOCH + (now - EPOCH) // length * length
    if last_end is None:
        return [(border - OPENING, border)]
    found: list[tuple[datetime, datetime]] = []
    start = last_end
    while len(found) < MOST:
        end = EPOCH + ((start - EPOCH) // length + 1) * length
        if end > border:
            break
        found.append((start, end))
        start = end
    return found


def tick_id(start: datetime, end: datetime) -> str:
    """Made of the period, so that however many publish its tick, it is one event."""
    return f"tick-{start:%Y%m%dT%H%M%SZ}-{round((end - start).total_seconds())}"
