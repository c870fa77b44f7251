"""The connection to NATS, whoever of those that use it leaves in the midst."""

import asyncio
import contextlib

from tests.harness import Harness


async def test_who_leaves_while_he_waits_for_the_server_cuts_off_nobody(harness: Harness) -> None:
    bus = await harness.everybody()

    async def heard() -> None:
        await bus.client.flush(timeout=3)

    # At whatever step of it.
    for steps in range(12):
        leaving = asyncio.create_task(heard())
        for _ in range(steps):
            await asyncio.sleep(0)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        await heard()
