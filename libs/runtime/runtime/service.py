"""What a service is: a name and tables of what it handles, answers, hears, repeats and serves.

Reading the `Service(...)` of every `app.py` gives the whole system; `tests/test_flow.py` compares them
with the README.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from contracts.events import Event
from contracts.model import Model
from contracts.question import Query
from contracts.reports import Report

if TYPE_CHECKING:
    from runtime.store import Tx

E = TypeVar("E", bound=Event)

Handler: TypeAlias = Callable[[Any, "Tx"], Awaitable[None]]
Answer: TypeAlias = Callable[[Any], Awaitable[Model]]
Hear: TypeAlias = Callable[[list[Any]], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Many:
    """A handler that takes all events of its kind in a batch at once."""

    handler: Callable[[list[Any], "Tx"], Awaitable[None]]


def many(handler: Callable[[list[E], "Tx"], Awaitable[None]]) -> Many:
    return Many(handler)


@dataclass(slots=True, eq=False)
class Loop:
    """Work that repeats under supervision: after `every` seconds, at a nudge, or at once when it says
    there is more. `every=None` is work that never ends; it is begun again when it does."""

    name: str
    work: Callable[[], Awaitable[bool | None]]
    every: float | None
    _nudged: asyncio.Event = field(default_factory=asyncio.Event)

    def nudge(self) -> None:
        self._nudged.set()

    async def pause(self, seconds: float) -> None:
        try:
            # Not wait_for: in Python 3.11 it swallows a cancellation that meets a nudge.
            async with asyncio.timeout(seconds):
                await self._nudged.wait()
        except TimeoutError:
            return
        finally:
            self._nudged.clear()


@dataclass(frozen=True, kw_only=True)
class Service:
    name: str
    handles: Mapping[type[Event], Handler | Many] = field(default_factory=dict)
    publishes: tuple[type[Event], ...] = ()
    answers: Mapping[type[Query[Any]], Answer] = field(default_factory=dict)
    listens: Mapping[type[Report], Hear] = field(default_factory=dict)
    reports: tuple[type[Report], ...] = ()
    loops: Sequence[Loop] = ()
    http: AsgiApp | None = None
    # Works without the bus, too, and is told of it when it comes (I6).
    without_bus: bool = False
    # Run once connected, before anything is handled; and last, after everything has stopped.
    on_start: Callable[[], Awaitable[None]] | None = None
    on_stop: Callable[[], Awaitable[None]] | None = None
    # Called as soon as the process is asked to end: what is open without an end, ends now.
    on_closing: Callable[[], None] | None = None
