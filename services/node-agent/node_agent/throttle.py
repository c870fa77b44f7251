"""Lets so many bytes a second pass, and no burst beyond: what is copied leaves room for what is said."""

from runtime.clock import Clock


class Throttle:
    def __init__(self, clock: Clock, bytes_per_second: float) -> None:
        self._clock = clock
        self._rate = bytes_per_second
        self._free_at = 0.0

    async def take(self, size: int) -> None:
        """Returns when it may pass; who came first goes first."""
        now = self._clock.monotonic()
        begins = max(now, self._free_at)
        self._free_at = begins + size / self._rate
        if begins > now:
            await self._clock.sleep(begins - now)
