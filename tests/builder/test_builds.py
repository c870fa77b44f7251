"""Builds as a whole: real Postgres and NATS, an engine that does as it is told."""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from builder.build_log import LeaseLost, LogWriter
from builder.image_builder import StepFailed
from builder.janitor import Needed, Published, unwanted
from builder.queue import Claimed, Queue
from builder.tables import BuildRow
from contracts import build_queries, events
from contracts.errors import ProviderFailed, Unavailable
from contracts.reports import BuildLog, LogLine
from contracts.workload import BuildCancelled, BuildFailed, BuildSettings, BuildSucceeded, GitSource
from runtime.runtime import Runtime
from runtime.store import PLATFORM
from sqlalchemy import select, text, update

from tests.builder.gateway import Gateway, spec
from tests.harness import SECRET, Harness, eventually
from tests.ports.fake_image_builder import FakeImageBuilder

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = "FROM berth/base:bookworm\nRUN echo hello\nEXPOSE 8000\n"


async def rows(runtime: Runtime) -> list[BuildRow]:
    async with runtime.store.transaction(PLATFORM) as tx:
        return await tx.scalars(select(BuildRow).order_by(BuildRow.queued_at))


async def building(runtime: Runtime) -> BuildRow | None:
    return next((row for row in await rows(runtime) if row.state == "building"), None)


# --- from request to result ----------------------------------------------------------------------------


@pytest.mark.promise("R8.1", "R8.2")
async def test_an_upload_is_built(gateway: Gateway, images: FakeImageBuilder) -> None:
    await gateway.builder(images)
    request = gateway.upload({"Dockerfile": DOCKERFILE, "big": "x" * 5000, "Procfile": "web: serve"})
    async with gateway.bus.subscribe(BuildLog, request.deployment) as live:
        await gateway.harness.publish(request)
        finished = await gateway.finished(request)
        lines = await gateway.log(request)
        reported: list[LogLine] = []
        while not live.empty():
            reported += live.get_nowait().lines
    result = finished.result
    assert isinstance(result, BuildSucceeded)
    assert result.image == result.digest
    assert (result.recipe, result.port, result.commit) == ("dockerfile", 8000, None)
    assert result.processes == {"web": "serve"}
    assert finished.seconds > 0
    [started] = await gateway.harness.events(events.BuildStarted)
    assert (started.build, started.workload) == (finished.build, request.workload)
    said = [(line.step, line.stream, line.text) for line in lines]
    assert ("build", "stdout", "hello") in said
    assert ("recipe", "platform", "Found Dockerfile: building with it.") in said
    assert [line.step for line in lines] == sorted(
        (line.step for line in lines), key=["source", "recipe", "build", "image"].index
    )
    assert lines[-1].text == "Built."
    assert reported == lines[:-1]
    assert gateway.asked_parts > 1
    assert images.builds[0].memory_mb == 2048


async def test_a_repository_is_built(gateway: Gateway, images: FakeImageBuilder) -> None:
    await gateway.builder(images, allow_private_git=True)
    images.repositories["http://127.0.0.1/app.git"] = {"Dockerfile": DOCKERFILE}
    request = gateway.request(GitSource(url="http://127.0.0.1/app.git", ref="main"))
    await gateway.harness.publish(request)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildSucceeded)
    assert result.commit is not None
    assert len(result.commit) == 40


@pytest.mark.promise("R8.3")
async def test_a_failing_step_is_told_with_code_and_hint(gateway: Gateway, images: FakeImageBuilder) -> None:
    await gateway.builder(images)
    request = gateway.upload({"Dockerfile": "FROM berth/base:bookworm\nRUN exit 127\n"})
    await gateway.harness.publish(request)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildFailed)
    assert (result.step, result.exit_code) == ("build", 127)
    assert "RUN exit 127" in result.message
    assert "program" in (result.hint or "")
    assert (await gateway.log(request))[-1].text == f"The build failed: {result.message}"
    assert len(images.builds) == 1


FAULTS: dict[str, tuple[dict[str, str | bytes] | bytes, dict[str, Any], str, str]] = {
    "no recipe": ({"readme": ""}, {}, "recipe", "nothing in the source says how to build it"),
    "a private repository": ({}, {"source": GitSource(url="https://127.0.0.1/x")}, "source", "private"),
    "another scheme": ({}, {"source": GitSource(url="file:///etc")}, "source", "https"),
    "an image by its id": ({"Dockerfile": "FROM ab"}, {}, "recipe", "by the id"),
    "a Dockerfile elsewhere": (
        {"Dockerfile": "FROM a:1"},
        {"build": BuildSettings(dockerfile="b")},
        "recipe",
        "'b'",
    ),
    "an archive that is none": (b"PK\x03\x04", {}, "source", "not a whole zip"),
}


@pytest.mark.parametrize(("files", "changes", "step", "words"), FAULTS.values(), ids=FAULTS.keys())
async def test_the_customers_mistakes_are_not_tried_again(
    gateway: Gateway,
    images: FakeImageBuilder,
    files: dict[str, str | bytes] | bytes,
    changes: dict[str, Any],
    step: str,
    words: str,
) -> None:
    host = await gateway.builder(images)
    request = gateway.upload(files, **changes)
    await gateway.harness.publish(request)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildFailed)
    assert result.step == step
    assert words in result.message
    assert not images.builds
    assert [row.attempts for row in await rows(host.runtime)] == [1]


# --- faults of the platform ------------------------------------------------------------------------------


async def test_a_fault_of_ours_is_tried_again(gateway: Gateway, images: FakeImageBuilder) -> None:
    await gateway.builder(images)
    images.fail_next("build", Unavailable("the container engine does not answer"))
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    assert isinstance((await gateway.finished(request)).result, BuildSucceeded)
    texts = [line.text for line in await gateway.log(request)]
    assert "Attempt 1 of 3 failed: the container engine does not answer. Trying again." in texts
    assert "Beginning again (attempt 2 of 3)." in texts
    assert len(await gateway.harness.events(events.BuildStarted)) == 1


async def test_a_gateway_that_is_away_costs_no_attempt(
    gateway: Gateway, images: FakeImageBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.source._PATIENCE_SECONDS", 0.05)
    host = await gateway.builder(images)
    gateway.away = 10
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    assert isinstance((await gateway.finished(request)).result, BuildSucceeded)
    assert gateway.away == 0
    assert [row.attempts for row in await rows(host.runtime)] == [1]


async def test_three_faults_of_ours_end_it_with_the_reason(
    gateway: Gateway, images: FakeImageBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.queue._RETRY_SECONDS", (0.1,))
    await gateway.builder(images)
    for _ in range(2):
        images.fail_next("publish", ProviderFailed("the image could not be pushed: EOF"))
    images.fail_next("publish", ZeroDivisionError("a bug"))
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildFailed)
    assert result.message == "the builder had an internal error (3 attempts)"
    assert "a bug" not in "".join(line.text for line in await gateway.log(request))


async def test_a_source_that_was_tampered_with_is_not_built(
    gateway: Gateway, images: FakeImageBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.queue._RETRY_SECONDS", (0.1,))
    await gateway.builder(images)
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    other = gateway.upload({"Dockerfile": DOCKERFILE + "RUN evil"})
    gateway.sources[request.source.source] = gateway.sources[other.source.source]  # type: ignore[union-attr]
    await gateway.harness.publish(request)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildFailed)
    assert not images.builds


async def test_a_build_that_takes_too_long_is_ended(gateway: Gateway, images: FakeImageBuilder) -> None:
    await gateway.builder(images, timeout_seconds=0.6)
    images.hold()
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildFailed)
    assert result.message == "the build was not done within 0.01 minutes"
    assert not images.containers


# --- the queue -------------------------------------------------------------------------------------------


async def test_twice_is_once(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images)
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    again = request.model_copy(update={"id": "another-event-of-the-same-deployment"})
    await gateway.harness.publish(request)
    await gateway.harness.publish_again(request)
    await gateway.harness.publish(again)
    gateway.pending = [request]
    await gateway.finished(request)
    await gateway.harness.settle()
    assert len(await rows(host.runtime)) == 1
    assert len(images.builds) == 1
    assert len(await gateway.harness.events(events.BuildFinished)) == 1


async def test_what_no_message_told_is_found(gateway: Gateway, images: FakeImageBuilder) -> None:
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    gateway.pending = [request]
    await gateway.builder(images)
    assert isinstance((await gateway.finished(request)).result, BuildSucceeded)


async def test_an_end_that_did_not_arrive_is_told_again(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images)
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    first = await gateway.finished(request)
    gateway.harness.clock.advance(61)
    gateway.pending = [request]
    heal = next(loop for loop in host.service.loops if loop.name == "pending")
    await heal.work()
    sent = await host.runtime.store.read("select payload from outbox")
    told = [events.BuildFinished.model_validate_json(payload) for (payload,) in sent]
    await gateway.harness.settle()
    if not told:
        # The relay was faster, and the server dropped the double by its id.
        assert len(await gateway.harness.events(events.BuildFinished)) == 1
    assert all((event.id, event.result) == (first.id, first.result) for event in told)


async def test_builders_share_the_queue(gateway: Gateway, images: FakeImageBuilder) -> None:
    other = FakeImageBuilder()
    images.hold()
    other.hold()
    await gateway.builder(images, concurrency=2)
    await gateway.builder(other, alias="second", concurrency=2)
    requests = [gateway.upload({"Dockerfile": DOCKERFILE}) for _ in range(6)]
    await gateway.harness.publish(*requests)

    async def four_at_once() -> bool:
        return len(images.builds) + len(other.builds) == 4

    await eventually(four_at_once, what="two builds at each")
    assert (len(images.builds), len(other.builds)) == (2, 2)
    images.let_go()
    other.let_go()
    for request in requests:
        assert isinstance((await gateway.finished(request)).result, BuildSucceeded)
    built = [order.deployment for order in images.builds + other.builds]
    assert sorted(built) == sorted(request.deployment for request in requests)


async def test_a_deleted_apps_builds_are_cancelled(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images, lease_seconds=1)
    images.hold()
    running = gateway.upload({"Dockerfile": DOCKERFILE})
    waiting = gateway.upload({"Dockerfile": DOCKERFILE}, workload=running.workload)
    stranger = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(running, waiting, stranger)
    await eventually(lambda: building(host.runtime), what="a build")
    await gateway.harness.publish(events.AppDeleted(spec=spec(running, state="deleted")))
    for request in (running, waiting):
        result = (await gateway.finished(request)).result
        assert isinstance(result, BuildCancelled)
        assert result.message == "the app was deleted"
        assert (await gateway.log(request))[-1].text == "The build was cancelled: the app was deleted"
    images.let_go()
    assert isinstance((await gateway.finished(stranger)).result, BuildSucceeded)
    assert not images.containers
    states = {row.deployment: row.state for row in await rows(host.runtime)}
    assert states == {
        running.deployment: "cancelled",
        waiting.deployment: "cancelled",
        stranger.deployment: "succeeded",
    }


async def test_a_build_nobody_waits_for_is_stopped(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images, lease_seconds=60)
    images.hold()
    running, waiting, unheard = (gateway.upload({"Dockerfile": DOCKERFILE}) for _ in range(3))
    await gateway.harness.publish(running, waiting)

    async def begun() -> bool:
        return bool(images.containers)

    await eventually(begun, what="the build")
    began = asyncio.get_running_loop().time()
    # The one under way last: its end makes room for one that waits.
    for request in (waiting, unheard, running):
        told = events.DeploymentCancelled(
            deployment=request.deployment,
            workload=request.workload,
            organization=request.organization,
            reason="cancelled on request",
        )
        await gateway.harness.publish(told)
        result = (await gateway.finished(request)).result
        assert result == BuildCancelled(message="cancelled on request")

    async def stopped() -> bool:
        return not images.containers

    await eventually(stopped, what="the end of it")
    assert asyncio.get_running_loop().time() - began < 5
    assert (await gateway.log(running))[-1].text == "The build was cancelled: cancelled on request"
    images.let_go()
    await gateway.harness.publish(unheard)
    await gateway.harness.settle()
    assert {row.state for row in await rows(host.runtime)} == {"cancelled"}
    assert [order.deployment for order in images.builds] == [running.deployment]


async def test_a_newer_request_takes_the_place_of_one_that_waits(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    host = await gateway.builder(images)
    images.hold()
    first = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(first)
    await eventually(lambda: building(host.runtime), what="the first")
    later = [gateway.upload({"Dockerfile": DOCKERFILE}, workload=first.workload, number=n) for n in (2, 4, 3)]
    await gateway.harness.publish(*later)
    for request in (later[0], later[2]):
        assert (await gateway.finished(request)).result == BuildCancelled(
            message="a newer deployment was asked for"
        )
    images.let_go()
    for request in (first, later[1]):
        assert isinstance((await gateway.finished(request)).result, BuildSucceeded)
    assert [order.deployment for order in images.builds] == [first.deployment, later[1].deployment]


@pytest.mark.promise("P10")
async def test_the_queue_is_told_in_the_order_of_its_turns(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    host = await gateway.builder(images, concurrency=3, organization_concurrency=1)
    images.hold()
    mine = [gateway.upload({"Dockerfile": DOCKERFILE}, app_name=f"mine-{n}") for n in range(3)]
    mine = [request.model_copy(update={"organization": mine[0].organization}) for request in mine]
    preview = gateway.upload({"Dockerfile": DOCKERFILE}, organization=mine[0].organization)
    preview = preview.model_copy(update={"environment": "review-7"})
    await gateway.harness.publish(mine[0])
    await eventually(lambda: building(host.runtime), what="the first")
    theirs = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(preview, *mine[1:], theirs)

    async def all_there() -> build_queries.BuildQueue | None:
        found = await gateway.bus.ask(build_queries.BuildsOpen())
        return found if (found.running, found.waiting) == (2, 3) else None

    found = await eventually(all_there, what="the queue")
    assert {build.deployment for build in found.builds[:2]} == {mine[0].deployment, theirs.deployment}
    assert [(build.deployment, build.position) for build in found.builds[2:]] == [
        (mine[1].deployment, 1),
        (mine[2].deployment, 2),
        (preview.deployment, 3),
    ]
    assert [build.app_name for build in found.builds[2:4]] == ["mine-1", "mine-2"]
    asked = build_queries.BuildsOpen(deployment=preview.deployment)
    [one] = (await gateway.bus.ask(asked)).builds
    assert (one.position, one.state, one.started_at) == (3, "queued", None)
    page = await gateway.bus.ask(build_queries.BuildsOpen(offset=1, limit=2))
    assert page.builds == found.builds[1:3]
    images.let_go()
    for request in (*mine, preview):
        assert isinstance((await gateway.finished(request)).result, BuildSucceeded)


async def test_one_that_cannot_be_read_does_not_stop_the_rest(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    runtime = await gateway.harness.store("builder")
    queue = Queue(runtime, 20, lambda: None)
    poison, good = (gateway.upload({"Dockerfile": DOCKERFILE}) for _ in range(2))
    for request in (poison, good):
        async with runtime.store.transaction(PLATFORM) as tx:
            await queue.requested(request, tx)
    async with runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(
            update(BuildRow).where(BuildRow.deployment == poison.deployment).values(request="{}")
        )
    await gateway.builder(images)
    assert isinstance((await gateway.finished(good)).result, BuildSucceeded)
    result = (await gateway.finished(poison)).result
    assert isinstance(result, BuildFailed)
    assert "cannot be read" in result.message


async def test_what_a_customer_writes_cannot_break_the_queue(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    await gateway.builder(images)
    settings = BuildSettings(start_command="serve\x00\nnow")
    request = gateway.upload({"Dockerfile": DOCKERFILE}, build=settings, app_name="\x00")
    await gateway.harness.publish(request)
    assert isinstance((await gateway.finished(request)).result, BuildSucceeded)


# --- leases ----------------------------------------------------------------------------------------------


async def test_another_builder_takes_over_from_one_that_was_killed(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    harness = gateway.harness
    runtime = await harness.store("builder")
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await harness.publish(request)
    doomed = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.builder.doomed",
        harness.settings.database_url, harness.settings.nats_url, SECRET, "1.5",
        cwd=ROOT,
    )  # fmt: skip
    try:

        async def under_way() -> bool:
            row = await building(runtime)
            return row is not None and row.log_sequence >= 3

        await eventually(under_way, seconds=20, what="the first attempt")
        # It is kept for as long as its builder lives.
        await asyncio.sleep(2)
        [row] = await rows(runtime)
        assert row.attempts == 1
    finally:
        doomed.kill()
        await doomed.wait()
    await gateway.builder(images)
    finished = await gateway.finished(request)
    assert isinstance(finished.result, BuildSucceeded)
    lines = await gateway.log(request)
    assert [line.text for line in lines].count("Beginning again (attempt 2 of 3).") == 1
    assert [line.text for line in lines].count("Found Dockerfile: building with it.") == 2
    assert len(await harness.events(events.BuildStarted)) == 1
    assert len(await harness.events(events.BuildFinished)) == 1


async def claimed(gateway: Gateway, queue: Queue) -> Claimed:
    found = await queue.claim()
    assert found is not None
    return found


async def test_who_lost_a_build_cannot_end_it(gateway: Gateway) -> None:
    runtime = await gateway.harness.store("builder")
    queue = Queue(runtime, 20, lambda: None)
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    async with runtime.store.transaction(PLATFORM) as tx:
        await queue.requested(request, tx)
    dead = await claimed(gateway, queue)
    ghost = LogWriter(runtime, dead.row, dead.holder, 10_000)
    await ghost.write("build", "stdout", "one")
    await ghost.flush()
    await ghost.write("build", "stdout", "never")
    assert await queue.claim() is None
    async with runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(update(BuildRow).values(lease_until=text("now() - interval '1 second'")))
    alive = await claimed(gateway, queue)
    assert alive.row.attempts == 2
    result = BuildFailed(step="build", exit_code=1, message="by the ghost")

    async def finish(claimed: Claimed, words: str) -> None:
        async with runtime.store.transaction(PLATFORM) as tx:
            await queue.finish(tx, claimed, result.model_copy(update={"message": words}))

    async def retry(claimed: Claimed) -> None:
        async with runtime.store.transaction(PLATFORM) as tx:
            await queue.retry(tx, claimed)

    for attempt in (ghost.flush(), finish(dead, "by the ghost"), retry(dead), queue.give_back(dead)):
        with pytest.raises(LeaseLost):
            await attempt
    writer = LogWriter(runtime, alive.row, alive.holder, 10_000)
    await writer.write("build", "stdout", "two")
    await writer.flush()
    await finish(alive, "by the living")
    with pytest.raises(LeaseLost):
        await finish(alive, "twice")
    [row] = await rows(runtime)
    assert "by the living" in (row.result or "")
    asked = build_queries.BuildLogAfter(deployment=request.deployment)
    from builder import build_log

    page = await build_log.answer(runtime, asked)
    assert page.finished
    assert [line.text for line in page.lines] == ["one", "two", "The build failed: by the living"]


async def test_a_lease_that_is_lost_stops_the_build(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images, lease_seconds=1)
    images.hold()
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    row = await eventually(lambda: building(host.runtime), what="a build")

    async def begun() -> bool:
        return bool(images.containers)

    await eventually(begun, what="its container")
    async with host.runtime.store.transaction(PLATFORM) as tx:
        await tx.execute(update(BuildRow).values(lease_holder="hld_somebody_else"))

    async def stopped() -> bool:
        return not images.containers

    await eventually(stopped, what="the end of what is somebody else's")
    assert (await rows(host.runtime))[0].result is None
    assert row.id == images.builds[0].build


async def test_a_builder_that_stops_gives_its_build_back(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images, lease_seconds=300)
    images.hold()
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)

    async def begun() -> bool:
        return bool(images.containers)

    await eventually(begun, what="its container")
    await gateway.harness.stop("builder")
    assert not images.containers
    runtime = await gateway.harness.store("builder")
    [row] = await rows(runtime)
    assert (row.attempts, row.lease_holder) == (0, None)
    assert host.service.name == "builder"
    images.let_go()
    await gateway.builder(images, alias="next")
    assert isinstance((await gateway.finished(request)).result, BuildSucceeded)
    texts = [line.text for line in await gateway.log(request)]
    assert "This builder is stopping; another takes over." in texts


async def test_a_build_that_killed_its_builders_is_ended(gateway: Gateway, images: FakeImageBuilder) -> None:
    runtime = await gateway.harness.store("builder")
    queue = Queue(runtime, 20, lambda: None)
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    async with runtime.store.transaction(PLATFORM) as tx:
        await queue.requested(request, tx)
    for _ in range(3):
        await claimed(gateway, queue)
        async with runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(update(BuildRow).values(lease_until=text("now() - interval '1 second'")))
    await gateway.builder(images)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildFailed)
    assert "stopped 3 times" in result.message
    assert not images.builds


# --- tenants, and order afterwards -----------------------------------------------------------------------


async def test_an_organization_sees_its_own_builds_alone(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images)
    mine, theirs = (gateway.upload({"Dockerfile": DOCKERFILE}) for _ in range(2))
    await gateway.harness.publish(mine, theirs)
    for request in (mine, theirs):
        await gateway.finished(request)
    async with host.runtime.store.transaction(mine.organization) as tx:
        assert [row.deployment for row in await tx.scalars(select(BuildRow))] == [mine.deployment]
        found = await tx.execute(text("select distinct deployment from build_log"))
        assert found.scalars().all() == [mine.deployment]


async def test_the_janitor_keeps_what_is_needed(gateway: Gateway, images: FakeImageBuilder) -> None:
    host = await gateway.builder(images, keep_images=2)
    first = gateway.upload({"Dockerfile": DOCKERFILE})
    requests = [first]
    for number in range(4):
        requests.append(gateway.upload({"Dockerfile": DOCKERFILE, "n": str(number)}, workload=first.workload))
    gone = gateway.upload({"Dockerfile": DOCKERFILE})
    built = {}
    for request in (*requests, gone):
        await gateway.harness.publish(request)
        result = (await gateway.finished(request)).result
        assert isinstance(result, BuildSucceeded)
        built[request.deployment] = result.image
    janitor = next(loop for loop in host.service.loops if loop.name == "janitor")
    # The oldest is the release, and a container still runs the second.
    images.in_use = {built[requests[1].deployment]}
    gateway.specs = [spec(first, image=built[first.deployment]), spec(gone, state="deleted")]
    await janitor.work()
    assert len(await images.images()) == 6, "what was just built may be on its way to be a release"
    gateway.harness.clock.advance(timedelta(hours=2).total_seconds())
    images.containers.add(("bld_of_the_dead", "hld"))
    await janitor.work()
    kept = {image.deployment for image in await images.images()}
    assert kept == {requests[n].deployment for n in (0, 1, 3, 4)}
    assert not images.containers
    layers = await host.runtime.store.read("select engine from layer")
    assert len(layers) == 6
    gateway.harness.clock.advance(timedelta(days=8).total_seconds())
    await janitor.work()
    assert await host.runtime.store.read("select engine from layer") == []


async def test_the_registry_keeps_what_can_be_gone_back_to(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    """The release and the last builds, whichever builder has made them; not the rest, nor a deleted app's."""
    images.registry = "registry.example.com:5000"
    host = await gateway.builder(images, keep_images=2, registry=images.registry)
    first = gateway.upload({"Dockerfile": DOCKERFILE})
    more = [gateway.upload({"Dockerfile": DOCKERFILE, "n": n}, workload=first.workload) for n in "123"]
    gone = gateway.upload({"Dockerfile": DOCKERFILE})
    built = {}
    for request in (first, *more, gone):
        await gateway.harness.publish(request)
        result = (await gateway.finished(request)).result
        assert isinstance(result, BuildSucceeded)
        built[request.deployment] = result.image
    janitor = next(loop for loop in host.service.loops if loop.name == "janitor")
    gateway.specs = [spec(first, image=built[first.deployment]), spec(gone, state="deleted")]
    await janitor.work()
    assert images.withdrawn == []
    gateway.harness.clock.advance(timedelta(hours=2).total_seconds())
    await janitor.work()
    await janitor.work()
    assert sorted(images.withdrawn) == sorted([built[more[0].deployment], built[gone.deployment]])


def test_an_image_of_two_deployments_is_unwanted_when_both_are() -> None:
    needed = Needed(frozenset({"app"}), frozenset(), frozenset({"new"}))
    published = [Published(deployment, "app", image) for deployment, image in (("old", "x"), ("new", "x"))]
    assert unwanted([*published, Published("old", "app", "y"), Published("new", "gone", "z")], needed) == [
        "y",
        "z",
    ]


async def test_the_cache_keeps_its_size_and_what_was_used_last(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    host = await gateway.builder(images, cache_gb=2.5)
    images.weight = 1024**3
    janitor = next(loop for loop in host.service.loops if loop.name == "janitor")
    layers = []
    for _ in range(4):
        request = gateway.upload({"Dockerfile": DOCKERFILE})
        await gateway.harness.publish(request)
        await gateway.finished(request)
        [layer] = images.layers()
        layers.append(layer)
        images._layers = {layer}
        await janitor.work()
        gateway.harness.clock.advance(timedelta(minutes=40).total_seconds())
    assert images.forgotten == layers[:2]
    gateway.harness.clock.advance(timedelta(hours=2).total_seconds())
    await janitor.work()
    assert images.forgotten == layers[:2]
    images.no_room = "the builder's disk has 3 MB left"
    await janitor.work()
    assert images.forgotten == layers
    # And nothing is built until there is room.
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    await gateway.harness.settle()
    assert len(images.builds) == 4
    images.no_room = None
    assert isinstance((await gateway.finished(request)).result, BuildSucceeded)


async def test_without_the_gateways_word_no_image_is_removed(
    harness: Harness, images: FakeImageBuilder
) -> None:
    gateway = Gateway(harness)
    host = await gateway.builder(images)
    janitor = next(loop for loop in host.service.loops if loop.name == "janitor")
    with pytest.raises(Unavailable):
        await janitor.work()


async def test_a_step_failure_with_a_hint_of_its_own_keeps_it(
    gateway: Gateway, images: FakeImageBuilder
) -> None:
    await gateway.builder(images)
    images.fail_next("build", StepFailed("build", "no", exit_code=3, hint="Do it otherwise."))
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    await gateway.harness.publish(request)
    result = (await gateway.finished(request)).result
    assert isinstance(result, BuildFailed)
    assert result.hint == "Do it otherwise."
