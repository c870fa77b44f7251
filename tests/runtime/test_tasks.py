"""A task that is told to end does, whatever it waits in."""

import asyncio

from runtime.tasks import end


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
