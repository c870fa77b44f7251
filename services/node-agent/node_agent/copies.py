"""Follows what is ordered of copies: gives, takes and drops, and says how far it is until nothing is ordered.

An order that is gone ends the work and destroys nothing. What was complete before the agent was killed is
said again by the next one. Wires `giving` and `taking`; runs as loops of `app`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from contracts.copies import CopyOrder
from contracts.reports import CopiesHeld, CopyState, HeldCopy
from nats.aio.client import Client
from pydantic import ValidationError
from runtime.bucket import Bucket
from runtime.tasks import end

from node_agent.giving import Giver
from node_agent.holdings import Holdings
from node_agent.site import Site
from node_agent.taking import Progress, Taker
from node_agent.throttle import Throttle

log = structlog.get_logger("node-agent.copies")

_MIB = 1024 * 1024


class Copies:
    def __init__(
        self,
        site: Site,
        folder: Path,
        holdings: Holdings,
        client: Callable[[], Client],
        *,
        report: Callable[[CopyState | CopiesHeld], Awaitable[None]],
        mb_per_second: float,
    ) -> None:
        self._site = site
        self._holdings = holdings
        self._client = client
        self._report = report
        self._throttle = Throttle(site.clock, mb_per_second * _MIB)
        self.giver = Giver(site, folder, client, Throttle(site.clock, mb_per_second * _MIB))
        self._orders: dict[str, CopyOrder] = {}
        self._taken: dict[str, Progress] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed: Callable[[], object] = bool

    def open(self) -> None:
        self.giver.open()
        self._holdings.open()

    def on_change(self, call: Callable[[], None]) -> None:
        self._changed = call

    async def close(self) -> None:
        for workload in list(self._tasks):
            await self._end(workload)
        await self.giver.close()

    async def follow(self, bucket: Bucket) -> None:
        async for change in bucket.watch(f"{self._site.node}.>"):
            if change is not None:
                await self._accept(change.key.partition(".")[2], change.value)

    async def _accept(self, workload: str, value: bytes | None) -> None:
        order = None
        if value is not None:
            try:
                order = CopyOrder.model_validate_json(value)
            except ValidationError as error:
                log.error("an order for a copy cannot be read", workload=workload, error=str(error))
                return
            if order.workload != workload:
                log.error("an order for a copy is under another's key", workload=workload)
                return
        if order == self._orders.get(workload):
            return
        if order is None:
            self._orders.pop(workload, None)
        else:
            self._orders[workload] = order
        await self.giver.order(workload, order if order is not None and order.role == "give" else None)
        await self._end(workload)
        if order is not None and order.role != "give":
            work = self._drop(order) if order.role == "drop" else self._take(order)
            self._tasks[workload] = asyncio.create_task(work, name=f"copy of {workload}")

    async def _end(self, workload: str) -> None:
        self._taken.pop(workload, None)
        task = self._tasks.pop(workload, None)
        if task is not None:
            await end([task])

    async def _take(self, order: CopyOrder) -> None:
        site = self._site
        taker = Taker(
            site.node, self._holdings, order, client=self._client, throttle=self._throttle, clock=site.clock
        )
        self._taken[order.workload] = taker.progress
        await self._guarded(order, taker.run())

    async def _drop(self, order: CopyOrder) -> None:
        await self._guarded(order, asyncio.to_thread(self._holdings.drop, order.workload))

    async def _guarded(self, order: CopyOrder, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            # A fault of ours: it is tried again when the order is read again, at the next start.
            log.exception("a copy broke", workload=order.workload, copy=order.id)
            raise
        self._changed()

    async def tell(self) -> None:
        """How each copy that is ordered from here stands."""
        for workload, order in list(self._orders.items()):
            if order.role != "give":
                await self._report(self._state(workload, order))

    async def tell_held(self) -> None:
        """What is here, page by page."""
        held = await asyncio.to_thread(self._holdings.all)
        copies = [HeldCopy(workload=w, taken_at=held[w].taken_at) for w in sorted(held)]
        pages = [copies[i : i + CopiesHeld.PAGE] for i in range(0, len(copies), CopiesHeld.PAGE)] or [[]]
        after = None
        for number, page in enumerate(pages, 1):
            until = None if number == len(pages) else page[-1].workload
            await self._report(CopiesHeld(node=self._site.node, after=after, until=until, copies=tuple(page)))
            after = until

    def _state(self, workload: str, order: CopyOrder) -> CopyState:
        task = self._tasks.get(workload)
        done = task is not None and task.done() and not task.cancelled() and task.exception() is None
        base = CopyState(node=self._site.node, copy_id=order.id, workload=workload, phase="copying")
        if order.role == "drop":
            return base.model_copy(update={"phase": "dropped"}) if done else base
        progress = self._taken.get(workload, Progress())
        state = base.model_copy(
            update={
                "done_mb": progress.done // _MIB,
                "total_mb": progress.total // _MIB,
                "sent_mb": -(-progress.sent // _MIB),
                "words": progress.words,
                "refused": progress.refused,
                "frozen_ms": progress.frozen_ms,
            }
        )
        manifest = progress.manifest
        if not done or manifest is None:
            return state
        return state.model_copy(
            update={
                "phase": "complete",
                "taken_at": manifest.taken_at,
                "digest": manifest.digest,
                "volumes": manifest.volumes,
            }
        )
