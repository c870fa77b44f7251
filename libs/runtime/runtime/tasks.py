"""Tasks that are told to end, and do."""

import asyncio
from collections.abc import Iterable
from typing import Any


async def end(tasks: Iterable[asyncio.Task[Any]], patience: float = 30.0) -> None:
    """Returns when all of them have ended, however they did. In Python 3.11 a library's `wait_for` swallows a
    cancellation that meets its result, and the task goes on: after `patience` seconds it is told again, and
    cut short where it is still putting something in order."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=patience)
        for task in done:
            if not task.cancelled():
                task.exception()
