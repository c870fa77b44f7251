"""Many builds of some organizations on two builders, one of which dies again and again."""

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from builder.queue import Queue
from builder.tables import BuildRow
from contracts import events
from contracts.ids import new_id
from contracts.workload import BuildSucceeded
from runtime.runtime import Runtime
from runtime.store import PLATFORM
from sqlalchemy import func, select

from tests.builder.gateway import Gateway
from tests.harness import SECRET, eventually
from tests.ports.fake_image_builder import FakeImageBuilder

ROOT = Path(__file__).parent.parent.parent
ORGANIZATIONS, EACH = 4, 5
DOCKERFILE = "FROM berth/base:bookworm\nRUN echo hello\n"


@asynccontextmanager
async def another_builder(gateway: Gateway) -> AsyncIterator[asyncio.subprocess.Process]:
    settings = gateway.harness.settings
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.builder.doomed",
        settings.database_url, settings.nats_url, SECRET, "1.5", "0.2",
        cwd=ROOT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def held(runtime: Runtime) -> int:
    async with runtime.store.transaction(PLATFORM) as tx:
        rows = await tx.scalars(
            select(BuildRow).where(BuildRow.state == "building", BuildRow.lease_until > func.now())
        )
        return len(rows)


@pytest.mark.promise("P10")
async def test_everybody_has_his_turn_and_every_build_ends_once(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    runtime = await gateway.harness.store("builder")
    organizations = [new_id("org") for _ in range(ORGANIZATIONS)]
    # One organization after the other has queued all of its own.
    requests = [
        gateway.upload({"Dockerfile": DOCKERFILE}, organization=organization)
        for organization in organizations
        for _ in range(EACH)
    ]
    queue = Queue(runtime, 20, lambda: None)
    for request in requests:
        async with runtime.store.transaction(PLATFORM) as tx:
            await queue.requested(request, tx)

    images.hold()
    await gateway.builder(images, lease_seconds=1.5)

    async def both_build() -> bool:
        return await held(runtime) == 2

    for _ in range(2):
        async with another_builder(gateway):
            # The held one, and one of the other builder's, which is killed in the midst of it.
            await eventually(both_build, seconds=20, every=0.01, what="a build at each")
    async with another_builder(gateway):
        await eventually(both_build, seconds=20, every=0.01, what="a build at each")
        images.let_go()

        async def all_ended() -> list[events.BuildFinished] | None:
            ended = await gateway.harness.events(events.BuildFinished)
            return ended if len(ended) >= len(requests) else None

        ended = await eventually(all_ended, seconds=60, what="every end")
    await gateway.harness.settle()
    ended = await gateway.harness.events(events.BuildFinished)
    assert Counter(end.deployment for end in ended) == Counter(r.deployment for r in requests)
    assert [end.result for end in ended if not isinstance(end.result, BuildSucceeded)] == []

    started = [event.organization for event in await gateway.harness.events(events.BuildStarted)]
    assert len(started) == len(requests)
    places = {
        organization: [place for place, one in enumerate(started) if one == organization]
        for organization in organizations
    }
    assert places[organizations[-1]][0] < places[organizations[0]][2]
    # And so it goes for all of them, but for who has a build at the slower builder all the while.
    others = sorted(places.values(), key=lambda mine: mine[-1])[:-1]
    for one, other in itertools.permutations(others, 2):
        assert all(one[n] < other[n + 2] for n in range(EACH - 2))
