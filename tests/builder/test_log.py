"""What becomes of a line between the step that says it and the log."""

import asyncio

import pytest
from builder import build_log
from builder.build_log import LogWriter
from builder.masking import Mask
from builder.queue import Queue
from contracts import build_queries, variables
from contracts.ids import new_id
from contracts.reports import BuildLog, LogLine
from contracts.variables import Variable
from contracts.workload import BuildFailed
from runtime.runtime import Runtime
from runtime.seal import Seal
from runtime.store import PLATFORM

from tests.builder.gateway import Gateway
from tests.ports.fake_image_builder import FakeImageBuilder

SECRET = "correct-horse-battery"
DOCKERFILE = "FROM berth/base:bookworm\n"


async def writer(gateway: Gateway, largest: int = 100_000_000) -> tuple[Runtime, LogWriter, str]:
    runtime = await gateway.harness.store("builder")
    request = gateway.upload({"Dockerfile": DOCKERFILE})
    queue = Queue(runtime, 60, lambda: None)
    async with runtime.store.transaction(PLATFORM) as tx:
        await queue.requested(request, tx)
    claimed = await queue.claim()
    assert claimed is not None
    return runtime, LogWriter(runtime, claimed.row, claimed.holder, largest), request.deployment


async def stored(runtime: Runtime, deployment: str) -> list[LogLine]:
    lines: list[LogLine] = []
    while True:
        page = await build_log.answer(
            runtime, build_queries.BuildLogAfter(deployment=deployment, after=len(lines), limit=700)
        )
        if not page.lines:
            return lines
        lines += page.lines


@pytest.mark.promise("R8.1")
async def test_secrets_of_the_app_are_not_told(gateway: Gateway, images: FakeImageBuilder) -> None:
    await gateway.builder(images)
    app = new_id("app")
    text = variables.all_of((Variable(name="PASSWORD", value=SECRET),))
    sealed = Seal(gateway.harness.settings.seal_key_of("variables")).close(text, variables.for_builder(app))
    files = {"Dockerfile": f"{DOCKERFILE}RUN echo it is {SECRET}\nRUN echo again {SECRET} >&2\nRUN exit 3\n"}
    request = gateway.upload(files, workload=app, variables=sealed)
    async with gateway.bus.subscribe(BuildLog, request.deployment) as live:
        await gateway.harness.publish(request)
        finished = await gateway.finished(request)
        texts = [line.text for line in await gateway.log(request)]
        while not live.empty():
            texts += [line.text for line in live.get_nowait().lines]
    assert isinstance(finished.result, BuildFailed)
    assert {"it is ********", "again ********"} <= set(texts)
    assert SECRET not in "".join(texts) + finished.model_dump_json()


async def test_what_is_written_comes_back_as_it_was(gateway: Gateway) -> None:
    runtime, log, deployment = await writer(gateway)
    said = [
        'plain "quoted" \\ back',
        "tab\tand \x1b[31mred\x1b[0m",
        "ünï ☃ 𝄞",
        "",
        "half \ud800",
        "\x07bell\x00",
    ]
    async with gateway.bus.subscribe(BuildLog, deployment) as live:
        await log.write("build", "stdout", "\n".join(said))
        await log.write("build", "stderr", "10%\r20%\rdone\r")
        await log.write("source", "platform", "y" * 5000)
        await log.flush()
        reported = (await live.get()).lines
    lines = await stored(runtime, deployment)
    assert tuple(lines) == reported
    assert [line.text for line in lines] == [*said[:4], "half ", "bell", "done", "y" * 4000 + " …"]
    assert [(line.step, line.stream) for line in lines[-2:]] == [("build", "stderr"), ("source", "platform")]


async def test_who_writes_faster_than_is_stored_waits(gateway: Gateway) -> None:
    runtime, log, deployment = await writer(gateway)
    part = "\n".join(f"{number} {'x' * 90}" for number in range(1000))

    async def flood() -> None:
        for _ in range(30):
            await log.write("build", "stdout", part)

    running = asyncio.create_task(log.run())
    async with log._storing:
        flooding = asyncio.create_task(flood())
        await asyncio.sleep(0.2)
        assert not flooding.done()
        assert log._waiting_size < build_log._MOST_WAITING + 400_000
    async with asyncio.timeout(20):
        await flooding
        await log.flush()
    running.cancel()
    assert len(await stored(runtime, deployment)) == 30_000


async def test_the_end_of_a_log_without_end_is_left_out_but_known(gateway: Gateway) -> None:
    runtime, log, deployment = await writer(gateway, largest=1000)
    log.hide(Mask([SECRET]))
    for number in range(100):
        await log.write("build", "stdout", f"line {number} of many\nand {SECRET}")
    await log.write("build", "platform", "our own word")
    await log.flush()
    texts = [line.text for line in await stored(runtime, deployment)]
    assert texts[-2:] == ["The log is too long; from here on the output is left out.", "our own word"]
    assert len(texts) < 100
    # For a hint, the last lines are known all the same.
    assert list(log.tail)[-2:] == ["line 99 of many", "and ********"]


@pytest.mark.parametrize("limit", [1, 7, 2000])
async def test_pages_of_any_size_join_without_a_gap(gateway: Gateway, limit: int) -> None:
    runtime, log, deployment = await writer(gateway)
    for number in range(30):
        await log.write("build", "stdout", f"line {number}\n" + "\x1b" * (3900 if number % 7 == 0 else 1))
        await log.flush()
    found: list[LogLine] = []
    while True:
        question = build_queries.BuildLogAfter(deployment=deployment, after=len(found), limit=limit)
        page = await build_log.answer(runtime, question)
        assert len(page.model_dump_json()) < 900_000
        if not page.lines:
            break
        found += page.lines
    assert [line.sequence for line in found] == list(range(1, 61))
