"""Hands what instances say, and what the agent's own process says, to the platform: each line once.

Where an instance is read from stands with the platform: a piece is read on from when the platform has said
that it keeps the one before. So nothing here is written to a disk, an agent that was killed goes on where the
platform is, and while the platform is away the engine keeps what is said. Wired by `app`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog
from contracts.errors import BerthError, NotFound, Unavailable
from contracts.lines import AGENT, LINE_BYTES, MOST_BYTES, PIECE_LINES, KeepLines, Kept, Line, Piece, packed
from runtime.clock import Clock
from runtime.telemetry import Recent

from node_agent.engine import ContainerEngine, Identity, LineReader

log = structlog.get_logger("node-agent.lines")

# What an instance may write on average, and at once; of what is more the newest is kept.
_BYTES_A_SECOND = 256 * 1024
_BURST = 2 * 1024 * 1024
# Read at a time of one; and of all in a round, so that no node takes the platform's time from the others.
_PIECE_BYTES = 512 * 1024
_ROUND_BYTES = 1024 * 1024
# In one message.
_PIECES = 500
# Of so many that are gone, what they have said last waits for the platform.
_ENDED = 200
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


@dataclass(eq=False)
class Source:
    """One that says something. `kept`: how far the platform has come; None before it was asked."""

    instance: str
    workload: str | None
    process: str
    kept: int | None = None
    reader: LineReader | None = None
    # Read, and not yet kept.
    waiting: deque[Piece] = field(default_factory=deque)
    # Nothing follows what waits.
    ended: bool = False
    allowance: float = _BURST


class OwnLog:
    """What the process of this agent has said since it was looked at last."""

    def __init__(self, recent: Recent) -> None:
        self._recent = recent
        self._last = 0

    def read(self, most: int) -> list[Line]:
        found = self._recent.after(self._last)
        if found:
            self._last = found[-1][0]
        return [Line(at, "stderr", text[:LINE_BYTES]) for at, text in found]

    def rest(self) -> list[Line]:
        return []

    def close(self) -> None:
        """Nothing is open."""


class Lines:
    def __init__(
        self,
        node: str,
        engine: ContainerEngine,
        own: LineReader,
        ask: Callable[[KeepLines], Awaitable[Kept]],
        clock: Clock,
    ) -> None:
        """`own`: what the process of this agent says."""
        self._node = node
        self._engine = engine
        self._ask = ask
        self._clock = clock
        agent = Source(AGENT, None, AGENT, reader=own)
        self._sources = {AGENT: agent}
        self._filled_at = clock.monotonic()
        self._turn = 0
        self._pause = 0.0
        self._again_at = 0.0
        # Of those that cannot be read, it is told once.
        self._mute: set[str] = set()
        self._sending = asyncio.Lock()

    def follow(self, identity: Identity, *, new: bool = False) -> None:
        """It has been started. `new`: nobody can have heard of it."""
        if identity.instance not in self._sources:
            place = str(identity.slot)
            self._sources[identity.instance] = Source(
                identity.instance, identity.workload, place, kept=0 if new else None
            )

    def followed(self) -> set[str]:
        return {name for name, source in self._sources.items() if name != AGENT and not source.ended}

    async def finish(self, instance: str) -> None:
        """It will be removed, or has gone, and says nothing any more: what it has said is read to the end."""
        source = self._sources.get(instance)
        if source is None or source.ended:
            return
        async with self._sending:
            try:
                if source.kept is None:
                    await self._send([source])
                await self._open(source)
            except BerthError as error:
                log.info("the last words are not read", instance=instance, error=error.message)
            if source.reader is not None:
                await asyncio.to_thread(self._read_out, source)
                source.reader.close()
            source.ended = True
            self._mute.discard(instance)
            if not source.waiting:
                self._sources.pop(instance, None)
            ended = [name for name, one in self._sources.items() if one.ended]
            for name in ended[:-_ENDED]:
                self._sources.pop(name)

    async def work(self) -> None:
        if self._clock.monotonic() < self._again_at:
            return
        async with self._sending:
            try:
                await self._round()
            except BerthError as error:
                if not self._pause:
                    log.info("lines wait", error=error.message)
                self._pause = min(max(_FIRST_PAUSE, self._pause * 2), _LONGEST_PAUSE)
                self._again_at = self._clock.monotonic() + self._pause

    def close(self) -> None:
        for source in self._sources.values():
            if source.reader is not None:
                source.reader.close()

    # --- a round -----------------------------------------------------------------------------------

    async def _round(self) -> None:
        unknown = [source for source in self._sources.values() if source.kept is None]
        if unknown:
            await self._send(unknown[:_PIECES])
        for source in list(self._sources.values()):
            await self._open(source)
        await asyncio.to_thread(self._read, list(self._sources.values()), self._clock.monotonic())
        ready = [source for source in self._sources.values() if source.waiting]
        while ready:
            size, batch = 0, list[Source]()
            while ready and len(batch) < _PIECES:
                size += len(ready[-1].waiting[0].body)
                if batch and size > MOST_BYTES:
                    break
                batch.append(ready.pop())
            await self._send(batch)

    async def _open(self, source: Source) -> None:
        if source.reader is not None or source.kept is None or source.ended or source.instance in self._mute:
            return
        try:
            source.reader = await self._engine.lines(source.instance, source.kept)
        except Unavailable:
            raise
        except NotFound:
            self._sources.pop(source.instance, None)
        except BerthError as error:
            self._mute.add(source.instance)
            log.warning("an instance cannot be heard", instance=source.instance, error=error.message)

    def _read(self, sources: list[Source], now: float) -> None:
        left = _ROUND_BYTES
        refill, self._filled_at = (now - self._filled_at) * _BYTES_A_SECOND, now
        # Who came first last time comes last: all have their turn when there is too much.
        self._turn += 1
        for place in range(len(sources)):
            source = sources[(self._turn + place) % len(sources)]
            source.allowance = min(_BURST, source.allowance + refill)
            if source.reader is not None and not source.waiting and min(source.allowance, left) > 0:
                left -= self._read_piece(source, min(_PIECE_BYTES, int(source.allowance)))

    def _read_piece(self, source: Source, most: int) -> int:
        """How much it was."""
        assert source.reader is not None
        lines = source.reader.read(most)
        size = sum(len(line.text) + 1 for line in lines)
        source.allowance -= size
        self._put(source, lines)
        return size

    def _read_out(self, source: Source) -> None:
        assert source.reader is not None
        while self._read_piece(source, _PIECE_BYTES):
            pass
        self._put(source, source.reader.rest())

    def _put(self, source: Source, lines: list[Line]) -> None:
        """Waits in pieces that fit into a message."""
        if not lines:
            return
        body = packed(lines)
        if len(lines) > PIECE_LINES or (len(body) > MOST_BYTES and len(lines) > 1):
            half = len(lines) // 2
            self._put(source, lines[:half])
            self._put(source, lines[half:])
            return
        after = source.waiting[-1].upto if source.waiting else source.kept or 0
        source.waiting.append(
            Piece(
                instance=source.instance,
                workload=source.workload,
                process=source.process,
                after=after,
                # Of two with the same moments the second would be taken for the first.
                upto=max(after + 1, lines[-1].at),
                lines=len(lines),
                body=body,
            )
        )

    # --- the platform's word -----------------------------------------------------------------------

    async def _send(self, sources: list[Source]) -> None:
        pieces = tuple(s.waiting[0] if s.waiting else _question(s) for s in sources)
        answer = await self._ask(KeepLines(node=self._node, pieces=pieces))
        self._pause = 0.0
        for source in sources:
            if source.instance in answer.refused:
                log.warning("an instance's lines are not taken", instance=source.instance)
                source.ended = True
                source.waiting.clear()
            elif source.instance in answer.kept:
                self._told(source, answer.kept[source.instance])
            if source.ended and not source.waiting:
                self._sources.pop(source.instance, None)

    def _told(self, source: Source, kept: int) -> None:
        if source.kept is None:
            source.kept = kept
            return
        if source.waiting and source.waiting[0].upto == kept:
            source.waiting.popleft()
        elif kept != source.kept or source.waiting:
            # It has lost some, or somebody has handed it over before: from there on anew.
            source.waiting.clear()
            if source.reader is not None and source.instance != AGENT:
                source.reader.close()
                source.reader = None
        source.kept = kept


def _question(source: Source) -> Piece:
    return Piece(
        instance=source.instance,
        workload=source.workload,
        process=source.process,
        after=0,
        upto=0,
        lines=0,
    )
