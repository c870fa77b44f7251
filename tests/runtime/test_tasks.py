"""A task that is told to end does, whatever it waits in; one that breaks is begun again."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from runtime.host import Host
from runtime.service import Loop, Service
from runtime.tasks import end
from runtime.telemetry import Telemetry

from tests.harness import eventually


async def test_one_that_swallows_a_cancellation_is_told_again() -> None:
    told = 0

    async def deaf() -> None:
        nonlocal told
        while told < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                told += 1

    async def fails() -> None:
        raise ZeroDivisionError

    tasks = [
        asyncio.create_task(deaf()),
        asyncio.create_task(fails()),
        asyncio.create_task(asyncio.sleep(60)),
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end(tasks, patience=0.05)
    assert told == 2
    assert all(task.done() for task in tasks)


async def test_of_none_there_is_nothing_to_wait_for() -> None:
    await end(())


async def test_what_has_worked_for_long_is_begun_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.host.LONGEST_PAUSE", 0.6)
    pauses: list[float] = []

    class Noted(Loop):
        async def pause(self, seconds: float) -> None:
            pauses.append(seconds)

    async def work() -> None:
        # At first it ends at once, and then only after a while.
        await asyncio.sleep(0 if len(pauses) < 3 else 0.7)
        raise ZeroDivisionError

    runtime: Any = SimpleNamespace(telemetry=Telemetry())
    host = Host(runtime, Service(name="billing"))
    repeating = asyncio.create_task(host._repeat(Noted("judge", work, every=None)))
    try:

        async def often_enough() -> bool:
            return len(pauses) >= 5

        await eventually(often_enough, what="five pauses")
    finally:
        await end([repeating])
    assert pauses[:5] == [0.25, 0.5, 0.6, 0.25, 0.25]
