"""A job runs at most once, says what it said, and comes to an end, whatever the agent is killed in."""

import asyncio
import errno
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from contracts import sessions
from contracts.errors import ProviderFailed, Unavailable
from contracts.events import InstanceStarted, InstanceStopped, JobFinished
from contracts.ids import new_id
from contracts.jobs import Job, NodeJob
from contracts.reports import JobOutput
from contracts.sessions import Ended, Open, Opened
from contracts.workload import NodeWorkload, Slot
from nats.aio.msg import Msg
from node_agent import shelf
from node_agent.endings import words
from node_agent.output import Output

from tests.harness import eventually
from tests.node_agent.conftest import NODE, World, spec


def job(world: World, command: str, **changes: Any) -> NodeJob:
    app = spec(**changes.pop("of", {}))
    wanted = Job.model_validate(
        {
            "id": new_id("job"),
            "kind": "run",
            "spec": app,
            "command": command,
            "timeout_seconds": 30.0,
            "start_before": world.now() + timedelta(seconds=60),
            **changes,
        }
    )
    slot = Slot(process=wanted.kind, index=0)
    return NodeJob(job=wanted, workload=NodeWorkload(node=NODE, revision=1, spec=app, slots=(slot,)))


async def give(world: World, wanted: NodeJob) -> NodeJob:
    await world.bus.bucket("jobs").put(f"{wanted.node}.{wanted.job.id}", wanted.model_dump_json().encode())
    return wanted


async def ended(world: World, wanted: NodeJob, seconds: float = 30) -> JobFinished:
    return await world.harness.event(JobFinished, lambda e: e.job == wanted.job.id, seconds=seconds)


async def begun(world: World, number: int = 1) -> None:
    async def look() -> bool:
        return [i.state for i in await world.engine.jobs()] == ["running"] * number

    await eventually(look, what="the begin of the job")


async def none_left(world: World) -> None:
    async def look() -> bool:
        return not await world.engine.jobs()

    await eventually(look, what="the end of its container")


class Terminal:
    """The gateway's end of one that is open to an attached job."""

    def __init__(self, world: World, wanted: NodeJob) -> None:
        self._client = world.bus.client
        self._node, self._session, self._wanted = wanted.node, new_id("ses"), wanted.job
        self.said: asyncio.Queue[bytes] = asyncio.Queue()

    async def open(self) -> None:
        async def hear(message: Msg) -> None:
            self.said.put_nowait(message.data)

        await self._client.subscribe(sessions.from_node(self._node, self._session), cb=hear)
        spec = self._wanted.spec
        asks = Open(verb="run", workload=spec.id, organization=spec.organization, job=self._wanted.id)

        async def stands() -> bool:
            subject = sessions.to_node(self._node, self._session)
            reply = await self._client.request(subject, asks.model_dump_json().encode(), timeout=5)
            return Opened.model_validate_json(reply.data).error is None

        await eventually(stands, what="its terminal")

    async def send(self, frame: bytes) -> None:
        await self._client.publish(sessions.to_node(self._node, self._session), frame)

    async def hears(self, kind: bytes) -> bytes:
        async with asyncio.timeout(10):
            while (frame := await self.said.get())[:1] != kind:
                continue
        return frame[1:]


async def talked_to(world: World, command: str) -> tuple[NodeJob, Terminal]:
    wanted = await give(world, job(world, command, attached=True))
    terminal = Terminal(world, wanted)
    await terminal.open()
    return wanted, terminal


async def test_a_job_runs_in_the_apps_environment_and_tells_its_end(world: World) -> None:
    await world.start()
    wanted = await give(world, job(world, "echo one; env DYNO; env PORT; exit 3"))
    end = await ended(world, wanted)
    assert (end.outcome, end.exit_code, end.words) == ("failed", 3, "exit code 3")
    assert [line.text for line in end.tail] == ["one", "run.1", "8080"]
    assert [line.sequence for line in end.tail] == [1, 2, 3]
    await none_left(world)
    # It took the room of an instance, and is paid for like one.
    [started] = await world.started()
    [stopped] = await world.harness.events(InstanceStopped)
    assert started.instance == stopped.instance
    assert (stopped.reason, stopped.exit_code) == ("ended", 3)
    assert end.seconds >= 0
    # What is said again is not done again.
    await give(world, wanted.model_copy(update={"cancelled": True}))
    await world.bus.bucket("jobs").delete(f"{NODE}.{wanted.job.id}")
    other = await give(world, job(world, "exit 0", kind="release"))
    assert (await ended(world, other)).outcome == "succeeded"
    assert world.engine.count("create") == 2
    # A release phase belongs to its deployment.
    assert len(await world.harness.events(InstanceStarted)) == 1


async def test_its_lines_come_while_it_runs(world: World) -> None:
    await world.start()
    async with world.bus.subscribe(JobOutput, NODE) as heard:
        wanted = await give(world, job(world, "echo early; sleep 1000"))
        async with asyncio.timeout(30):
            report = await heard.get()
        assert (report.job, report.lines[0].text) == (wanted.job.id, "early")
    await give(world, wanted.model_copy(update={"cancelled": True}))
    assert (await ended(world, wanted)).outcome == "cancelled"


async def test_a_job_that_takes_too_long_is_ended(world: World) -> None:
    await world.start()
    wanted = await give(world, job(world, "sleep 1000", timeout_seconds=0.3))
    end = await ended(world, wanted)
    assert (end.outcome, end.words) == ("timed_out", "it ran for longer than 0.3 s")
    await none_left(world)


async def test_a_job_whose_terminal_the_bus_takes_no_more_from_ends(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await world.start()
    wanted, terminal = await talked_to(world, "cat; sleep 1000")
    await terminal.send(sessions.INPUT + b"here")
    assert await terminal.hears(sessions.OUTPUT) == b"here"
    client = host.runtime.bus.client
    publish = client.publish

    async def full(subject: str, *rest: Any, **more: Any) -> None:
        if subject.startswith("session.out."):
            raise nats.errors.OutboundBufferLimitError
        await publish(subject, *rest, **more)

    monkeypatch.setattr(client, "publish", full)
    await terminal.send(sessions.INPUT + b"there")
    end = await ended(world, wanted)
    assert (end.outcome, end.words) == ("cancelled", "its terminal was closed")
    await none_left(world)


async def test_who_talks_to_a_job_hears_of_its_end_though_the_engine_was_away(world: World) -> None:
    await world.start()
    wanted, terminal = await talked_to(world, "cat")
    world.engine.fail_next("ending", Unavailable("the container engine does not answer"))
    await terminal.send(sessions.INPUT + b"\x04")
    told = Ended.model_validate_json(await terminal.hears(sessions.ENDED))
    assert told.words == (await ended(world, wanted)).words
    assert told.words == "its terminal was closed: the node's agent could not follow it"


async def test_no_more_is_taken_for_a_job_than_it_reads(world: World) -> None:
    """Also of a gateway that does not mind the window."""
    await world.start()
    wanted, terminal = await talked_to(world, "sleep 1000")
    for _ in range(40):
        await terminal.send(sessions.INPUT + b"x" * 50_000)
    told = Ended.model_validate_json(await terminal.hears(sessions.ENDED))
    assert told.words == "it was told more than it reads"
    assert (await ended(world, wanted)).words == told.words


async def test_a_job_is_not_left_alone_whatever_fails(world: World) -> None:
    await world.start()
    world.engine.fail_next("output", ValueError("nobody has thought of this"))
    wanted = await give(world, job(world, "exit 0"))
    assert (await ended(world, wanted)).outcome == "succeeded"


async def test_a_job_that_writes_more_than_its_plan_allows_is_ended(world: World) -> None:
    await world.start()
    wanted = await give(world, job(world, "sleep 1000"))
    await begun(world)
    [instance] = await world.engine.jobs()
    world.engine.writes[instance.identity.instance] = 65 * 2**20
    loops = world.harness.hosts["node-agent"].service.loops
    next(loop for loop in loops if loop.name == "disks").nudge()
    end = await ended(world, wanted)
    assert end.outcome == "failed"
    assert end.words == "it wrote more than the 64 MB of its plan, or folders too deep to be measured"


async def test_a_job_that_has_filled_the_disk_goes_before_that_can_be_written(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[str] = []
    write = shelf.write_durably

    def write_with_room(path: Path, text: str, drafts: Path) -> None:
        if any(one.identity.instance in filled for one in world.engine.blueprints()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text, drafts)

    monkeypatch.setattr(shelf, "write_durably", write_with_room)
    await world.start()
    wanted = await give(world, job(world, "sleep 1000"))
    await begun(world)
    [instance] = await world.engine.jobs()
    filled.append(instance.identity.instance)
    world.engine.writes[instance.identity.instance] = 65 * 2**20
    loops = world.harness.hosts["node-agent"].service.loops
    next(loop for loop in loops if loop.name == "disks").nudge()
    end = await ended(world, wanted)
    assert end.outcome == "failed"
    assert str(end.words).startswith("it wrote more than the 64 MB of its plan")


async def test_an_agent_that_is_killed_goes_on_with_what_runs(world: World) -> None:
    await world.start()
    wanted = await give(world, job(world, "echo before; sleep 0.6; echo after"))
    await begun(world)
    await world.crash()
    await world.start()
    end = await ended(world, wanted)
    assert end.outcome == "succeeded"
    assert [line.text for line in end.tail] == ["before", "after"]
    assert world.engine.count("create") == 1
    assert len(await world.harness.events(InstanceStarted)) == 1


async def test_a_job_that_ended_while_the_agent_was_away_is_told_as_it_ended(world: World) -> None:
    await world.start()
    wanted = await give(world, job(world, "sleep 0.2; echo done; exit 5"))
    await begun(world)
    await world.crash()
    await asyncio.sleep(0.4)
    await world.start()
    end = await ended(world, wanted)
    assert (end.outcome, end.exit_code) == ("failed", 5)
    assert [line.text for line in end.tail] == ["done"]


async def test_a_job_whose_container_vanished_meanwhile_is_lost_and_not_begun_again(world: World) -> None:
    await world.start()
    wanted = await give(world, job(world, "sleep 1000"))
    await begun(world)
    await world.crash()
    [found] = await world.engine.jobs()
    await world.engine.remove(found.identity.instance)
    await world.start()
    end = await ended(world, wanted)
    assert end.outcome == "lost"
    assert world.engine.count("create") == 1


async def test_a_job_that_was_created_and_not_started_is_started(world: World) -> None:
    await world.start()
    going_down = asyncio.Event()

    async def hang(instance: str) -> None:
        going_down.set()
        await asyncio.sleep(1000)

    start, world.engine.start = world.engine.start, hang  # type: ignore[method-assign]
    wanted = await give(world, job(world, "echo ran"))
    await going_down.wait()
    await world.crash()
    world.engine.start = start  # type: ignore[method-assign]
    await world.start()
    end = await ended(world, wanted)
    assert (end.outcome, [line.text for line in end.tail]) == ("succeeded", ["ran"])


async def test_a_job_heard_of_too_late_is_not_begun(world: World) -> None:
    wanted = await give(world, job(world, "echo late", start_before=world.now() - timedelta(seconds=1)))
    await world.start()
    assert (await ended(world, wanted)).outcome == "lost"
    assert world.engine.count("create") == 0


async def test_what_cannot_be_started_says_why(world: World) -> None:
    await world.start()
    wanted = await give(world, job(world, "true", of={"image": "registry.example/app:7"}))
    end = await ended(world, wanted)
    assert end.outcome == "not_started"
    assert "registry.example/app:7 could not be pulled" in str(end.words)
    world.engine.fail_next("start", ProviderFailed("no such file: sh"))
    broken = await give(world, job(world, "true"))
    assert "it could not be started: no such file: sh" in str((await ended(world, broken)).words)


async def test_a_job_of_another_node_is_nobodys_here(world: World) -> None:
    await world.start()
    stranger = job(world, "echo stolen")
    workload = stranger.workload.model_copy(update={"node": "n1"})
    key = f"{NODE}.{stranger.job.id}"
    value = stranger.model_copy(update={"workload": workload})
    await world.bus.bucket("jobs").put(key, value.model_dump_json().encode())
    own = await give(world, job(world, "echo mine"))
    await ended(world, own)
    assert [e.job for e in await world.harness.events(JobFinished)] == [own.job.id]


def test_an_output_is_lines_and_its_tail_is_bounded() -> None:
    output = Output(lambda: datetime(2026, 1, 1, tzinfo=UTC))
    output.add("stdout", b"one\ntw")
    output.add("stderr", b"oops\n")
    output.add("stdout", b"o\r\n" + b"x" * 5000)
    output.end()
    texts = [(line.stream, line.text) for line in output.tail]
    assert texts[:3] == [("stdout", "one"), ("stderr", "oops"), ("stdout", "two")]
    assert [len(text) for _, text in texts[3:]] == [2000, 2000, 1000]
    assert sum(len(lines) for lines in output.unsaid()) == 6
    assert list(output.unsaid()) == []
    for n in range(10_000):
        output.add("stdout", f"line {n}\n".encode())
    assert output.lines == 10_006
    assert len(output.tail) == 200
    assert output.tail[-1].text == "line 9999"
    assert all(line.sequence <= 5_000 for lines in output.unsaid() for line in lines)


def test_what_is_told_at_a_time_fits_into_a_message() -> None:
    """Of what is no text each byte takes six."""
    output = Output(lambda: datetime(2026, 1, 1, tzinfo=UTC))
    output.add("stdout", (b"\x01" * 2000 + b"\n") * 300)
    told = list(output.unsaid())
    assert [line.sequence for lines in told for line in lines] == list(range(1, 301))
    job = new_id("job")
    assert all(len(JobOutput(node=NODE, job=job, lines=some).model_dump_json()) < 500_000 for some in told)


def test_an_ending_is_told_in_words() -> None:
    assert words(137, out_of_memory=True, memory_mb=256) == "killed: out of memory (256 MB)"
    assert words(127) == "exit code 127: command not found"
    assert words(143) == "exit code 143: asked to stop (SIGTERM)"
    assert words(3) == "exit code 3"
    assert words(None) == "ended with an unknown exit code"
