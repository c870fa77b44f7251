"""The taking end of a copy: brings over the blocks that differ, believes none but by its digest, and begins
again where it was cut off.

First what differs is fetched while the instances write on, until little is left; then the giver settles on
one moment, and the rest of that is fetched. Wired by `copies`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog
from contracts.copies import (
    BLOCK,
    DIGEST,
    PAGE,
    Ask,
    CopyOrder,
    Offer,
    Settled,
    blocks_subject,
    digest_of,
)
from contracts.errors import ProviderFailed, Unavailable
from nats.aio.client import Client
from nats.errors import Error as NatsError
from pydantic import ValidationError
from runtime.clock import Clock
from runtime.tasks import end

from node_agent.blocks import differing, digest, zero_digest
from node_agent.freezing import StoodTooLong
from node_agent.giving import ERROR, RESTS
from node_agent.holdings import Draft, Holdings, Manifest
from node_agent.throttle import Throttle

log = structlog.get_logger("node-agent.taking")

_MIB = 1024 * 1024
# Blocks on their way at the same time: a few messages of half a megabyte.
_AT_ONCE = 4
_ANSWER_SECONDS = 60.0
# Rounds over what changes while it is copied, and what may be left for the moment of standing still.
_ROUNDS, _LITTLE = 4, 32
_VERIFICATIONS = 3
_SETTLE_PAUSE = 0.5


@dataclass
class Progress:
    done: int = 0
    total: int = 0
    sent: int = 0
    words: str | None = None
    # It would be in vain for a long time.
    refused: bool = False
    manifest: Manifest | None = None
    frozen_ms: int = 0

    def gets_on(self) -> None:
        self.words, self.refused = None, False


class Taker:
    def __init__(
        self,
        node: str,
        holdings: Holdings,
        order: CopyOrder,
        *,
        client: Callable[[], Client],
        throttle: Throttle,
        clock: Clock,
    ) -> None:
        self._holdings = holdings
        self._client = client
        self._throttle = throttle
        self._clock = clock
        self._order = order
        self._subject = blocks_subject(str(order.peer), node)
        self.progress = Progress()

    async def run(self) -> None:
        """Until it is complete; whatever hinders it is told and tried again."""
        pause = 1.0
        while True:
            try:
                held = await asyncio.to_thread(self._holdings.finish, self._order.workload)
                if held is None or held.id != self._order.id:
                    held = await self._take()
                self.progress.manifest = held
                self.progress.gets_on()
                return
            except (ProviderFailed, Unavailable, ValidationError, OSError) as error:
                words = error.message if isinstance(error, ProviderFailed | Unavailable) else str(error)
                if words != self.progress.words:
                    log.info("a copy does not get on", workload=self._order.workload, why=words)
                self.progress.words, self.progress.refused = words, isinstance(error, StoodTooLong)
            await self._clock.sleep(pause)
            pause = min(pause * 2, 15.0)

    async def _take(self) -> Manifest:
        order = self._order
        offer = Offer.model_validate_json(await self._ask("open"))
        if not offer.volumes:
            raise ProviderFailed("there is nothing to copy")
        offered = {volume.id: volume for volume in offer.volumes}
        draft = await asyncio.to_thread(self._holdings.begin, order.workload, offered)
        try:
            self.progress.total = sum(volume.size for volume in offer.volumes)
            if order.mode == "frozen":
                await self._follow(draft)
            settled = await self._settled()
            manifest = await self._bring(draft, settled)
            self.progress.frozen_ms = settled.frozen_ms
            await asyncio.to_thread(draft.commit, manifest)
        finally:
            await asyncio.to_thread(draft.close)
        manifest = await asyncio.to_thread(self._holdings.apply, order.workload)
        self.progress.done = self.progress.total
        log.info("copy complete", workload=order.workload, copy=order.id, sent_mb=self.progress.sent // _MIB)
        with contextlib.suppress(ProviderFailed, Unavailable):
            await self._ask("close")
        return manifest

    async def _follow(self, draft: Draft) -> None:
        for _ in range(_ROUNDS):
            fetched = await self._round(draft, {v: await self._digests(draft, v) for v in draft.offered})
            if fetched <= _LITTLE:
                return

    async def _bring(self, draft: Draft, settled: Settled) -> Manifest:
        order = self._order
        assert settled.taken_at is not None
        for _ in range(_VERIFICATIONS):
            wanted = {volume: await self._digests(draft, volume) for volume in draft.offered}
            if digest_of(wanted) != settled.digest:
                raise ProviderFailed("the digests are not those of the copy")
            await self._round(draft, wanted, exact=True)
            await asyncio.to_thread(draft.verify, whole=order.mode == "final")
            if draft.digest() == settled.digest:
                return Manifest(
                    id=order.id,
                    workload=order.workload,
                    taken_at=settled.taken_at,
                    digest=draft.digest(),
                    volumes=tuple(sorted(draft.offered)),
                )
        raise ProviderFailed("what is on this disk is not what was sent")

    async def _settled(self) -> Settled:
        while True:
            settled = Settled.model_validate_json(await self._ask("settle"))
            if settled.waiting is None:
                return settled
            await self._clock.sleep(_SETTLE_PAUSE)

    async def _digests(self, draft: Draft, volume: str) -> bytes:
        blocks, found = draft.offered[volume].blocks, bytearray()
        for first in range(0, blocks, PAGE):
            found += await self._ask("digests", volume, first)
        if len(found) != blocks * DIGEST:
            raise ProviderFailed("the volume has another size now; the copy begins again")
        return bytes(found)

    async def _round(self, draft: Draft, wanted: dict[str, bytes], *, exact: bool = False) -> int:
        """Fetches what differs. `exact`: a block that comes otherwise is none of this copy."""
        todo = [(v, i) for v, digests in wanted.items() for i in differing(digests, bytes(draft.here[v]))]
        missing = sum(draft.offered[v].blocks for v in wanted) - len(todo)
        self.progress.done = min(missing * BLOCK, self.progress.total)
        waiting = iter(todo)

        async def fetch() -> None:
            for volume, index in waiting:
                place = slice(index * DIGEST, (index + 1) * DIGEST)
                expected = wanted[volume][place]
                length = min(BLOCK, draft.offered[volume].size - index * BLOCK)
                if expected == zero_digest(length):
                    block = bytes(length)
                else:
                    block = await self._ask("block", volume, index)
                    self.progress.sent += len(block)
                    self.progress.gets_on()
                    await self._throttle.take(len(block))
                if len(block) != length or (exact and digest(block) != expected):
                    raise ProviderFailed("a block is not that of the copy; it begins again")
                await asyncio.to_thread(draft.put, volume, index, block)
                self.progress.done = min(self.progress.done + BLOCK, self.progress.total)

        await _all(fetch() for _ in range(_AT_ONCE))
        return len(todo)

    async def _ask(self, what: str, volume: str | None = None, index: int = 0) -> bytes:
        order = self._order
        ask = Ask.model_validate(
            {"id": order.id, "secret": order.secret, "what": what, "volume": volume, "index": index}
        )
        try:
            reply = await self._client().request(
                self._subject, ask.model_dump_json().encode(), timeout=_ANSWER_SECONDS
            )
        except (NatsError, TimeoutError, OSError) as error:
            raise Unavailable(f"{order.peer} does not answer") from error
        headers = reply.headers or {}
        refused = headers.get(ERROR)
        if refused is not None:
            failure = StoodTooLong if RESTS in headers else ProviderFailed
            raise failure(f"{order.peer}: {refused}")
        return reply.data


async def _all(works: Iterable[Awaitable[None]]) -> None:
    """The first error ends all of them, and is the one that is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await end(tasks)
