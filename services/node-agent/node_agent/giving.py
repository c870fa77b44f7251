"""The giving end of a copy: answers the one node that was ordered to take it, and nobody else.

Invariant (I5): a question is answered only while there is an order to give this workload to the very node
that asks (the server vouches for who asks), and with the order's secret. What is given after `settle` is of
one moment: files that go on being written stand still while they are cloned, or, where they cannot be, while
they are read; and the blocks the taker lacks are put aside for it. Wired by `copies`.
"""

import asyncio
import contextlib
import hmac
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
from contracts.copies import (
    DIGEST,
    PAGE,
    Ask,
    CopyOrder,
    Offer,
    OfferedVolume,
    Settled,
    blocks_subject,
    digest_of,
)
from contracts.errors import BerthError, NotFound, ProviderFailed
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import ValidationError
from runtime.tasks import end

from node_agent.blocks import Image, digest
from node_agent.clones import Clones
from node_agent.freezing import Rests, StoodTooLong, flush, frozen
from node_agent.site import Site
from node_agent.throttle import Throttle

log = structlog.get_logger("node-agent.giving")

ERROR = "Berth-Error"
# Beside an error: it will be the same for a long time.
RESTS = "Berth-Rests"
# Questions answered at the same time; each holds a block in memory.
_AT_ONCE = 8
# Of those that wait, more are not heard: their takers ask again.
_WAITING = 64


class Session:
    """One copy as it is given: what the taker has, and what it shall have."""

    def __init__(self, site: Site, order: CopyOrder, folder: Path, rests: Rests) -> None:
        self._site = site
        self._rests = rests
        self.order = order
        self._stage = folder / order.id
        self._clones = Clones(self._stage / "clones")
        self._closed = False
        self._files = site.volumes.files(order.workload)
        self._offered = {v: OfferedVolume(id=v, size=f.stat().st_size) for v, f in self._files.items()}
        # Of each block, what the taker was given last, or had already.
        self._known = {v: bytearray(DIGEST * one.blocks) for v, one in self._offered.items()}
        self._digests: dict[str, bytes] = {}
        self._settled: Settled | None = None
        self._settling: asyncio.Task[None] | None = None

    def offer(self) -> Offer:
        return Offer(volumes=tuple(self._offered.values()))

    def digests(self, volume: str, first: int) -> bytes:
        """A page of them: of the moment that was settled, else of now."""
        if self._settled is not None:
            return self._digests[volume][first * DIGEST : (first + PAGE) * DIGEST]
        with Image(self._files[volume]) as image:
            page = image.digests(first, first + PAGE)
        self._known[volume][first * DIGEST : first * DIGEST + len(page)] = page
        return page

    def block(self, volume: str, index: int) -> bytes:
        staged = self._settled is not None and self.order.mode == "frozen"
        with Image(self._stage / volume if staged else self._files[volume]) as image:
            block = image.read(index)
        if self._settled is None:
            self._known[volume][index * DIGEST : (index + 1) * DIGEST] = digest(block)
        return block

    async def settle(self) -> Settled:
        """The first question begins it, and the ones that follow see how far it is."""
        if self._settled is None and (self._settling is None or self._settling.done()):
            if self._settling is not None:
                failed, self._settling = self._settling, None
                failed.result()
            self._settling = asyncio.create_task(self._settle(), name=f"copy settling {self.order.id}")
        if self._settling is not None:
            await asyncio.wait({self._settling}, timeout=2)
            if self._settling.done():
                settling, self._settling = self._settling, None
                settling.result()
        return self._settled or Settled(waiting="the volumes are read")

    async def _settle(self) -> None:
        site, workload = self._site, self.order.workload
        began = site.clock.monotonic()
        try:
            async with AsyncExitStack() as held:
                if self.order.mode == "final":
                    await held.enter_async_context(site.mounts.alone(workload))
                    if (why := await self._at_work()) is not None:
                        raise ProviderFailed(why)
                # Nobody makes, mounts or takes away one of them meanwhile.
                for volume in sorted(self._files):
                    await held.enter_async_context(site.volumes.held(volume))
                now = site.clock.now()
                mounts = [m for v in sorted(self._files) if (m := site.volumes.mounted_at(v)) is not None]
                if self.order.mode == "final" and mounts:
                    # Also by a job.
                    raise ProviderFailed("its volumes are still mounted")
                if mounts:
                    self._rests.check(workload)
                may_clone = await asyncio.to_thread(self._prepare, mounts)
                stands = site.clock.monotonic()
                try:
                    clones = await asyncio.to_thread(self._fix, mounts, may_clone)
                except StoodTooLong:
                    self._rests.begin(workload)
                    raise
                self._rests.end(workload)
                stood = site.clock.monotonic() - stands if mounts else 0
            if clones is not None:
                self._digests = await asyncio.to_thread(self._read, clones)
        finally:
            await asyncio.to_thread(self._clones.drop)
        self._settled = Settled(taken_at=now, digest=digest_of(self._digests), frozen_ms=round(stood * 1000))
        log.info(
            "copy settled",
            workload=workload,
            copy=self.order.id,
            mode=self.order.mode,
            cloned=clones is not None,
            frozen_ms=self._settled.frozen_ms,
            milliseconds=round((site.clock.monotonic() - began) * 1000),
        )

    async def _at_work(self) -> str | None:
        """Why this cannot be the last word yet."""
        site, workload = self._site, self.order.workload
        if workload not in site.desired or not site.desired[workload].desired.moving:
            return "its instances have not been told to end"
        if await site.engine.instances(workload):
            return "its instances are ending"
        return None

    def _prepare(self, mounts: list[Path]) -> bool:
        """Whether they may be cloned."""
        shutil.rmtree(self._stage, ignore_errors=True)
        self._stage.mkdir(mode=0o700, parents=True)
        flush(mounts)
        # What has ended stands still by itself.
        return self.order.mode == "frozen" and self._clones.has_room(self._files)

    def _fix(self, mounts: list[Path], may_clone: bool) -> dict[str, Path] | None:
        """Everything as it is in one moment: cloned, or else read."""
        with frozen(mounts):
            clones = self._clones.make(self._files) if may_clone else None
            if clones is None:
                self._digests = self._read(self._files)
        return clones

    def _read(self, files: Mapping[str, Path]) -> dict[str, bytes]:
        return {volume: self._read_one(volume, files[volume]) for volume in sorted(files)}

    def _read_one(self, volume: str, file: Path) -> bytes:
        """What the taker lacks is put aside where writing goes on."""
        known = self._known[volume]
        if self.order.mode == "final":
            with Image(file) as image:
                return b"".join(self._pages(image))
        with (
            Image(file) as image,
            Image(self._stage / volume, write=True, size=image.size) as stage,
        ):
            if image.size != self._offered[volume].size:
                raise ProviderFailed("a volume has grown; the copy begins again")
            whole = image.of_zeros(0, image.blocks)
            for index in image.filled():
                self._check()
                if file != self._files[volume]:
                    self._clones.check()
                block = image.read(index)
                place = slice(index * DIGEST, (index + 1) * DIGEST)
                whole[place] = digest(block)
                if known[place] != whole[place]:
                    stage.write(index, block)
            return bytes(whole)

    def _pages(self, image: Image) -> Iterator[bytes]:
        for first in range(0, image.blocks, PAGE):
            self._check()
            yield image.digests(first, first + PAGE)

    def _check(self) -> None:
        if self._closed:
            raise ProviderFailed("the copy is over")

    async def close(self) -> None:
        self._closed = True
        if self._settling is not None:
            # What runs in a thread cannot be cut off; it sees that nobody waits for it any more.
            await asyncio.gather(self._settling, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self._stage, True)


class Giver:
    def __init__(self, site: Site, folder: Path, client: Callable[[], Client], throttle: Throttle) -> None:
        self._site = site
        self._folder = folder / "given"
        self._rests = Rests(site.clock)
        self._client = client
        self._throttle = throttle
        self._orders: dict[str, CopyOrder] = {}
        self._sessions: dict[str, Session] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(_AT_ONCE)

    def open(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    async def order(self, workload: str, order: CopyOrder | None) -> None:
        """The one that holds for a workload from now on."""
        if order == self._orders.get(workload):
            return
        if order is None:
            self._orders.pop(workload, None)
        else:
            self._orders[workload] = order
        session = self._sessions.pop(workload, None)
        if session is not None:
            await session.close()

    async def serve(self) -> None:
        """Never ends but by the error of the connection."""
        client = self._client()
        subscription = await client.subscribe(blocks_subject(self._site.node, "*"), cb=self._asked)
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(Exception):
                await subscription.unsubscribe()

    async def close(self) -> None:
        await end(self._tasks)
        for workload in list(self._sessions):
            await self._sessions.pop(workload).close()

    async def _asked(self, message: Msg) -> None:
        if len(self._tasks) >= _WAITING:
            return
        task = asyncio.create_task(self._answer(message), name=f"copy answer {message.subject}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Msg) -> None:
        try:
            async with self._gate:
                answer = await self._given(message.subject, message.data)
            await self._throttle.take(len(answer))
            await message.respond(answer)
        except (BerthError, OSError, KeyError, ValidationError) as error:
            await self._refuse(message, error)
        except NatsError as error:
            # The taker asks again.
            log.debug("an answer was not sent", error=str(error))

    async def _refuse(self, message: Msg, error: Exception) -> None:
        words = (
            error.message if isinstance(error, BerthError) else f"it cannot be read: {type(error).__name__}"
        )
        log.info("a question for a copy is refused", subject=message.subject, why=words, error=str(error))
        headers = {ERROR: words.replace("\n", " ")}
        if isinstance(error, StoodTooLong):
            headers[RESTS] = "1"
        try:
            await self._client().publish(message.reply, b"", headers=headers)
        except NatsError as lost:
            log.debug("a refusal was not sent", error=str(lost))

    async def _given(self, subject: str, data: bytes) -> bytes:
        ask = Ask.model_validate_json(data)
        order = self._ordered(subject.rpartition(".")[2], ask)
        session = self._sessions.get(order.workload)
        if ask.what == "open" or session is None:
            if ask.what not in ("open", "close"):
                raise NotFound("the copy is not begun here")
            if session is not None:
                await session.close()
            await self._make_first(order.workload)
            session = await asyncio.to_thread(Session, self._site, order, self._folder, self._rests)
            self._sessions[order.workload] = session
        return await self._of(session, ask)

    async def _make_first(self, workload: str) -> None:
        """The data of an app that has never run here is empty volumes, and goes as such."""
        record, mounts = self._site.desired.get(workload), self._site.mounts
        if record is None or not record.desired.spec.volumes:
            return
        if self._site.volumes.of(workload):
            mounts.check(record.desired)
            return
        async with mounts.alone(workload):
            await mounts.attach(record.desired)
        await mounts.let_go(workload)

    async def _of(self, session: Session, ask: Ask) -> bytes:
        match ask.what:
            case "open":
                return session.offer().model_dump_json().encode()
            case "settle":
                return (await session.settle()).model_dump_json().encode()
            case "close":
                self._sessions.pop(session.order.workload, None)
                await session.close()
                return b"{}"
            case "digests":
                return await asyncio.to_thread(session.digests, str(ask.volume), ask.index)
            case "block":
                return await asyncio.to_thread(session.block, str(ask.volume), ask.index)

    def _ordered(self, taker: str, ask: Ask) -> CopyOrder:
        for order in self._orders.values():
            if order.id == ask.id and order.peer == taker and order.secret:
                if hmac.compare_digest(order.secret.encode(), ask.secret.encode()):
                    return order
                break
        raise NotFound("no such copy is to be given to you")
