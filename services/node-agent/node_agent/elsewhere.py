"""What other nodes have of every workload, as the buckets `places`, `endpoints` and `peers` say; kept on
disk (I6).

A value that cannot be read, a key that is missing and a bucket that is empty change nothing: what was
known last is kept. After a start nothing is changed either before all three have been read: half of the
truth is none.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog
from contracts.errors import Poison
from contracts.mesh import Peer, Placed
from contracts.workload import Endpoints
from pydantic import ValidationError
from runtime.bucket import Bucket, Change

from node_agent.shelf import Shelf
from node_agent.standing import Shares, Standing, counted, placed, shares

log = structlog.get_logger("node-agent.elsewhere")

SOURCES = ("places", "endpoints", "peers")


class Elsewhere:
    def __init__(self, node: str, folder: Path) -> None:
        self._node = node
        self._standings = Shelf(folder / "elsewhere", Standing, durable=False)
        self._peers = Shelf(folder / "peers", Peer, durable=False)
        self._reached: set[str] = set()
        self._unread = set(SOURCES)
        self._waiting: deque[tuple[str, Change]] = deque()
        self._behind = True
        self._catching_up = asyncio.Lock()
        self._changed: set[str] = set()
        self._stirred = asyncio.Event()
        self._own: Callable[[], object] = bool

    def open(self) -> None:
        self._standings.open()
        self._peers.open()
        self._reached = {node for node, peer in self._peers if peer.host is not None}
        self.touch(self.workloads())

    def on_own_peer(self, call: Callable[[], None]) -> None:
        self._own = call

    # --- what is known -------------------------------------------------------------------------------

    def shares(self, workload: str) -> Shares:
        """Nodes, and how many instances each has that a request for the workload may be sent to."""
        standing = self._standings.get(workload)
        return () if standing is None else shares(standing, self._node, self._reached)

    def placed(self, workload: str) -> Placed | None:
        """None where no node has ever been told of it; where it is stopped, it is on none."""
        standing = self._standings.get(workload)
        return None if standing is None else standing.placed

    def workloads(self) -> list[str]:
        return [workload for workload, _ in self._standings]

    def peer(self, node: str) -> Peer | None:
        return self._peers.get(node)

    def address(self, node: str) -> str | None:
        peer = self._peers.get(node)
        return None if peer is None or peer.host is None else f"{peer.host}:{peer.port}"

    # --- who has to be told ----------------------------------------------------------------------------

    def touch(self, workloads: Iterable[str]) -> None:
        """What leads to these is to be looked at."""
        self._changed.update(workloads)
        if self._changed:
            self._stirred.set()

    async def changed(self) -> set[str]:
        await self._stirred.wait()
        self._stirred.clear()
        taken, self._changed = self._changed, set()
        return taken

    # --- what is said ----------------------------------------------------------------------------------

    async def follow(self, source: str, bucket: Bucket) -> None:
        async for change in bucket.watch():
            if change is not None:
                await self.accept(source, change)
            else:
                self._unread.discard(source)
                await self._catch_up()

    async def _catch_up(self) -> None:
        """In the order in which it was said, whatever is said meanwhile."""
        async with self._catching_up:
            while self._waiting and not self._unread:
                await self._take(*self._waiting.popleft())
            self._behind = bool(self._unread)

    async def accept(self, source: str, change: Change) -> None:
        if self._behind:
            self._waiting.append((source, change))
        else:
            await self._take(source, change)

    async def _take(self, source: str, change: Change) -> None:
        try:
            if source == "peers":
                await self._accept_peer(change)
            else:
                await self._accept(source, change)
        except (ValidationError, Poison) as error:
            # One bad record stops no other; the last good one stays.
            log.error("not understood, and left out", bucket=source, key=change.key, error=str(error))

    async def _accept(self, source: str, change: Change) -> None:
        workload, _, node = change.key.partition(".")
        before = self._standings.get(workload) or Standing(workload=workload)
        if source == "places":
            now = placed(before, _placed(change))
        else:
            now = counted(before, node, _count(change, workload, node))
        if now == before:
            return
        if now.placed is None and not now.counts:
            await self._standings.remove(workload)
        else:
            await self._standings.put(workload, now)
        self.touch([workload])

    async def _accept_peer(self, change: Change) -> None:
        node = change.key
        if change.value is None:
            await self._peers.remove(node)
            self._reached.discard(node)
        else:
            peer = Peer.model_validate_json(change.value)
            if peer.node != node:
                raise Poison(f"speaks of {peer.node}")
            await self._peers.put(node, peer)
            self._reached = {name for name, known in self._peers if known.host is not None}
        if node == self._node:
            self._own()
        self.touch(workload for workload, standing in self._standings if node in standing.counts)


def _placed(change: Change) -> Placed | None:
    if change.value is None:
        return None
    said = Placed.model_validate_json(change.value)
    if said.workload != change.key:
        raise Poison(f"speaks of {said.workload}")
    return said


def _count(change: Change, workload: str, node: str) -> int:
    if change.value is None:
        return 0
    said = Endpoints.model_validate_json(change.value)
    if (said.workload, said.node) != (workload, node):
        raise Poison(f"speaks of {said.workload} on {said.node}")
    return len(said.addresses)
