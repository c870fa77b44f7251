"""Reads every copy that lies here now and then, slowly, and disowns one that is not what came: a disk forgets
without a word. Runs as a loop of `app`.
"""

import asyncio
import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contracts.copies import BLOCK, DIGEST
from runtime.clock import Clock

from node_agent.blocks import Image
from node_agent.holdings import CHECKED, Holdings, Manifest, digests_of, image_of
from node_agent.throttle import Throttle

_EVERY = timedelta(days=14)
_BYTES_PER_SECOND = 8 * 1024 * 1024
# Blocks that are read at a time.
_PIECE = 16


class Scrub:
    def __init__(self, clock: Clock, holdings: Holdings) -> None:
        self._clock = clock
        self._holdings = holdings
        self._throttle = Throttle(clock, _BYTES_PER_SECOND)

    async def work(self) -> bool:
        """The one that was read longest ago, if it is time; whether there may be more."""
        held = await asyncio.to_thread(self._holdings.all)
        now = self._clock.now()
        since = {w: await asyncio.to_thread(self._checked, self._holdings.folder(w), now) for w in held}
        due = min(since, key=lambda w: since[w], default=None)
        if due is None or now - since[due] < _EVERY:
            return False
        if await self._right(held[due]):
            await asyncio.to_thread(_mark, self._holdings.folder(due), self._clock.now())
        return True

    @staticmethod
    def _checked(folder: Path, now: datetime) -> datetime:
        """One that is seen for the first time was read when it came."""
        try:
            return datetime.fromtimestamp((folder / CHECKED).stat().st_mtime, UTC)
        except FileNotFoundError:
            _mark(folder, now)
            return now

    async def _right(self, manifest: Manifest) -> bool:
        workload = manifest.workload
        for volume in manifest.volumes:
            first = 0
            while (read := await asyncio.to_thread(self._piece, workload, volume, first)) is not None:
                if read < 0:
                    await asyncio.to_thread(self._holdings.disown, workload, manifest.id)
                    return False
                await self._throttle.take(read)
                first += _PIECE
        return True

    def _piece(self, workload: str, volume: str, first: int) -> int | None:
        """How much of it was read; less than nothing: it is not what it was; None: there is no such piece, or
        it has gone meanwhile."""
        folder = self._holdings.folder(workload)
        try:
            with digests_of(folder, volume).open("rb") as file:
                file.seek(first * DIGEST)
                known = file.read(_PIECE * DIGEST)
            if not known:
                return None
            end = first + len(known) // DIGEST
            with Image(image_of(folder, volume)) as image:
                right = image.digests(first, end) == known
                return BLOCK * sum(1 for _ in image.filled(first, end)) if right else -1
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return -1


def _mark(folder: Path, when: datetime) -> None:
    if folder.is_dir():
        (folder / CHECKED).touch(mode=0o600)
        os.utime(folder / CHECKED, (when.timestamp(), when.timestamp()))
