"""Instances that end by themselves, counted by slot: what of it is worth telling, and in which words. PURE.

The engine starts an instance again by itself, later and later each time it ends soon. Whoever ends often is
told of more and more seldom, so that an app that never stands still does not flood the platform.
"""

from collections import defaultdict, deque

from contracts.workload import Slot

WINDOW_SECONDS = 120.0
# How the engine waits: twice as long each time, from this on, up to a minute; anew after a good while.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 60.0
_GOOD_WHILE = 10.0
_TOLD = (1, 2, 3, 5)
_LATER = 10


class Crashes:
    def __init__(self) -> None:
        self._times: defaultdict[Slot, deque[float]] = defaultdict(deque)

    def note(self, slot: Slot, at: float) -> int | None:
        """How many it makes within the window, where that is worth telling."""
        times = self._times[slot]
        times.append(at)
        while times and at - times[0] > WINDOW_SECONDS:
            times.popleft()
        number = len(times)
        return number if number in _TOLD or number % _LATER == 0 else None

    def wait(self, slot: Slot) -> float:
        """About how long until it is started again."""
        quick, times = 0, list(self._times[slot])
        for before, after in zip(reversed(times[:-1]), reversed(times[1:]), strict=True):
            if after - before > _GOOD_WHILE + _wait(quick):
                break
            quick += 1
        return _wait(quick)

    def forget(self, slot: Slot) -> None:
        self._times.pop(slot, None)


def told(slot: Slot, number: int, wait: float, ending: str) -> str:
    if number == 1:
        return f"{slot} crashed ({ending}) and is started again"
    when = f", next try in {wait:.0f} s" if wait >= 1 else ""
    return (
        f"{slot} crashed {number} times in {WINDOW_SECONDS / 60:.0f} minutes{when}; the last time: {ending}"
    )


def _wait(quick: int) -> float:
    return float(min(_FIRST_WAIT * 2**quick, _LONGEST_WAIT))
