"""Which workloads of this node are asleep: their instances are stopped, until somebody asks for them.

The order is the gateway's: a specification says after how long without a request its workload may sleep, and
one that is stopped, suspended or deleted has no slots, so nothing wakes it. When it falls asleep and when it
wakes is this node's to say, and it asks nobody (I6). What it says is on disk first.
"""

import asyncio

from contracts.events import SleepChanged
from contracts.model import Model, Moment
from contracts.workload import NodeWorkload, Slot
from runtime.clock import Clock

from node_agent.engine import ROUTED
from node_agent.journal import Journal
from node_agent.shelf import Shelf


class Nap(Model):
    """Of these instances; others would have to be seen to come to life."""

    since: Moment
    fingerprint: str
    slots: tuple[Slot, ...]


def allowed(wanted: NodeWorkload) -> bool:
    """Only what a request can reach is woken by one."""
    return (
        wanted.spec.sleep_seconds is not None
        and wanted.spec.wants_instances
        and any(slot.process == ROUTED for slot in wanted.slots)
    )


def lasts(nap: Nap, wanted: NodeWorkload) -> bool:
    """A change of what runs wakes it; a change of anything else does not."""
    return (
        allowed(wanted)
        and set(nap.slots) == set(wanted.slots)
        and nap.fingerprint == wanted.spec.fingerprint()
    )


class Sleep:
    def __init__(self, shelf: Shelf[Nap], node: str, journal: Journal, clock: Clock) -> None:
        self._shelf = shelf
        self._node = node
        self._journal = journal
        self._clock = clock
        # A hundred requests at once wake it once.
        self._changing = asyncio.Lock()

    def open(self) -> None:
        self._shelf.open()

    def asleep(self, workload: str) -> bool:
        return self._shelf.get(workload) is not None

    async def begin(self, wanted: NodeWorkload) -> None:
        after = wanted.spec.sleep_seconds
        assert after is not None, "nothing sleeps without an order"
        nap = Nap(
            since=self._clock.now(),
            fingerprint=wanted.spec.fingerprint(),
            slots=wanted.slots,
        )
        async with self._changing:
            await self._tell(wanted, asleep=True, words=f"it sleeps: no request for {_span(after)}")
            await self._shelf.put(wanted.spec.id, nap)

    async def wake(self, wanted: NodeWorkload) -> bool:
        """Somebody asks for it. False: it does not sleep."""
        if not self.asleep(wanted.spec.id):
            return False
        async with self._changing:
            if self.asleep(wanted.spec.id):
                await self._end(wanted, "a request woke it")
        return True

    async def say_again(self, wanted: NodeWorkload) -> None:
        """After a start: the last word may be of a change that was not made any more."""
        if self.asleep(wanted.spec.id):
            await self._tell(wanted, asleep=True, words=None)

    async def check(self, wanted: NodeWorkload) -> None:
        """Ends a nap that is not what is wanted any more."""
        nap = self._shelf.get(wanted.spec.id)
        if nap is None or lasts(nap, wanted):
            return
        async with self._changing:
            if self.asleep(wanted.spec.id):
                await self._end(wanted, "a change of the app woke it" if wanted.slots else None)

    async def _end(self, wanted: NodeWorkload, words: str | None) -> None:
        # In this order a crash in between leaves it asleep, and the next request wakes it.
        await self._tell(wanted, asleep=False, words=words)
        await self._shelf.remove(wanted.spec.id)

    async def _tell(self, wanted: NodeWorkload, *, asleep: bool, words: str | None) -> None:
        now, spec = self._clock.now(), wanted.spec
        await self._journal.append(
            SleepChanged(
                id=f"{spec.id}.{self._node}.{'slept' if asleep else 'woke'}.{now.timestamp():.3f}",
                at=now,
                node=self._node,
                workload=spec.id,
                organization=spec.organization,
                asleep=asleep,
                words=words,
            )
        )


def _span(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"
