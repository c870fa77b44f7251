"""An app that nobody asks for sleeps; the first request waits until it is awake, and is answered."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from contracts.errors import ProviderFailed
from contracts.events import InstanceStarted, SleepChanged
from contracts.workload import Route, WorkloadSpec
from node_agent.sleep import Nap, allowed, lasts
from node_agent.waker import Waker
from runtime.clock import SystemClock

from tests.harness import eventually
from tests.node_agent.conftest import World, next_release, replicas, slots, spec, wanted

AFTER = 0.5
UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
Answer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def nap_of(app: WorkloadSpec, count: int = 1) -> Nap:
    desired = wanted(app, count=count)
    return Nap(since=SystemClock().now(), fingerprint=desired.spec.fingerprint(), slots=desired.slots)


# --- what may sleep ----------------------------------------------------------------------------------------


def test_only_an_order_lets_an_app_sleep_and_only_what_a_request_can_wake() -> None:
    app = spec(sleep_seconds=60)
    assert allowed(wanted(app))
    assert not allowed(wanted(spec()))
    assert not allowed(wanted(app.model_copy(update={"state": "stopped"})))
    assert not allowed(wanted(app).model_copy(update={"slots": slots(2, "worker")}))


def test_what_would_run_otherwise_wakes_it_and_nothing_else_does() -> None:
    app = spec(sleep_seconds=60)
    nap = nap_of(app)
    later = app.model_copy(update={"sleep_seconds": 600.0, "generation": 2})
    assert lasts(nap, wanted(later, revision=2))
    assert not lasts(nap, wanted(app.model_copy(update={"sleep_seconds": None})))
    assert not lasts(nap, wanted(next_release(app)))
    assert not lasts(nap, wanted(replicas(app, 2), count=2))
    assert not lasts(nap, wanted(app.model_copy(update={"state": "stopped"})))


# --- a node ------------------------------------------------------------------------------------------------


def look_for_sleep(world: World) -> None:
    host = world.harness.hosts["node-agent"]
    [loop] = [loop for loop in host.service.loops if loop.name == "sleep"]
    loop.nudge()


async def asleep(world: World, app: WorkloadSpec) -> SleepChanged:
    """Once it is."""

    async def look() -> SleepChanged | None:
        look_for_sleep(world)
        said = [e for e in await world.harness.events(SleepChanged) if e.workload == app.id]
        return said[-1] if said and said[-1].asleep else None

    told = await eventually(look, every=0.1, what="sleep")
    await world.running(app, 0)
    return told


async def test_it_sleeps_unasked_and_a_hundred_requests_wake_it_once(world: World) -> None:
    app, (first,) = await world.live(sleep_seconds=AFTER)
    world.engine.start_seconds = 0.3
    told = await asleep(world, app)
    assert told.words == "it sleeps: no request for 0.5 seconds"
    stopped = await world.stopped(first)
    assert stopped.reason == "slept"
    answers = await asyncio.gather(*(world.get("hello.localhost") for _ in range(100)))
    assert {status for status, _ in answers} == {200}, answers
    [second] = await world.running(app)
    assert second != first
    assert {body.split()[0] for _, body in answers} == {second}
    # The meter opens again, once; and was closed in between.
    starts = [e for e in await world.harness.events(InstanceStarted) if e.workload == app.id]
    assert [e.instance for e in starts] == [first, second]
    assert starts[1].started_at > stopped.stopped_at
    said = [e.asleep for e in await world.harness.events(SleepChanged)]
    assert said == [True, False]
    # From then on the requests go the straight way: past the waker.
    await world.answers("hello.localhost", second)

    def straight() -> bool:
        text = next(world.traefik.routes.glob(f"{app.id}*")).read_text()
        return "http://127.0.0.1:" not in text

    await eventually(lambda: _true(straight), what="the instance's own route")
    # Health checks go on all the while, and keep it no more awake than before.
    await asleep(world, app)


async def _true(look: Callable[[], bool]) -> bool:
    return look()


async def test_an_open_connection_is_traffic(world: World) -> None:
    app, _ = await world.live(sleep_seconds=AFTER)
    world.engine.answer_seconds = 2.5
    slow = asyncio.create_task(world.get("hello.localhost"))
    for _ in range(15):
        await asyncio.sleep(0.1)
        look_for_sleep(world)
    assert await world.harness.events(SleepChanged) == []
    assert (await slow)[0] == 200
    world.engine.answer_seconds = 0
    await asleep(world, app)


async def test_an_agent_starts_on_a_disk_that_is_full(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the one who finds whoever has filled it."""
    app, _ = await world.live(sleep_seconds=AFTER)
    await asleep(world, app)
    await world.stop()
    # A start on a full disk before this one may have left it like that.
    (world.harness.settings.state / "nodes" / "local" / "waker").write_text("")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        for write in ("pathlib.Path.write_text", "node_agent.shelf.write_durably"):
            patched.setattr(write, full)
        await world.start()
    await world.stop()
    await world.start()

    async def woken() -> bool:
        return (await world.get("hello.localhost"))[0] == 200

    await eventually(woken, what="the app")


async def test_one_that_was_stopped_meanwhile_is_not_woken(world: World) -> None:
    app, _ = await world.live(sleep_seconds=AFTER)
    await asleep(world, app)
    off = app.model_copy(update={"state": "stopped", "generation": 2})
    await world.want(wanted(off, 2))
    assert (await world.finished(off)).running == 0
    assert (await world.get("hello.localhost"))[0] == 503
    await asyncio.sleep(0.3)
    assert await world.running(app, 0) == []
    assert len(await world.harness.events(InstanceStarted)) == 1
    # And a start is a start: it is awake.
    on = app.model_copy(update={"generation": 3})
    await world.want(wanted(on, 3))
    [name] = await world.running(app)
    assert not (await world.finished(on)).asleep
    await world.answers("hello.localhost", name)


async def test_it_sleeps_on_through_a_new_agent_and_wakes_without_a_platform(world: World) -> None:
    app, _ = await world.live(sleep_seconds=AFTER)
    await asleep(world, app)
    await world.crash()
    await world.start()
    await asyncio.sleep(0.5)
    assert await world.running(app, 0) == []
    # Another order about sleep alone wakes nobody, and is told as settled.
    later = app.model_copy(update={"sleep_seconds": 3600.0, "generation": 2})
    await world.want(wanted(later, 2))
    finished = await world.finished(later)
    assert (finished.ok, finished.asleep, finished.running) == (True, True, 0)
    status, body = await world.get("hello.localhost")
    assert status == 200
    assert body.split()[0] in await world.running(app)


async def test_a_new_release_wakes_it(world: World) -> None:
    app, _ = await world.live(sleep_seconds=AFTER)
    await asleep(world, app)
    new = next_release(app, image="app:2")
    await world.want(wanted(new, 2))
    finished = await world.finished(new)
    assert (finished.ok, finished.asleep, finished.running) == (True, False, 1)


async def test_a_wake_that_fails_is_tried_again_while_the_request_waits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.rollout._FIRST_REPAIR_PAUSE", 0.5)
    app, _ = await world.live(sleep_seconds=AFTER)
    await asleep(world, app)
    world.engine.fail_next("create", ProviderFailed("no address is left"))
    status, _ = await world.get("hello.localhost")
    assert status == 200
    assert await world.running(app)


# --- the door ----------------------------------------------------------------------------------------------


class Door:
    """A waker with one app behind it, that wakes when the test says so."""

    def __init__(self, folder: Any, **changes: Any) -> None:
        self.app = spec(sleep_seconds=60, **changes)
        self.roused = 0
        self.got: list[bytes] = []
        self.instances: list[asyncio.Server] = []
        record: Any = type("Record", (), {"desired": wanted(self.app)})
        routes: Any = self
        desired: Any = {self.app.id: record}
        self.record = record
        self.waker = Waker(folder, routes, desired, SystemClock())
        self.waker.on_request(self.rouse)
        self.on_rouse: Callable[[], Awaitable[None]] | None = None

    def at(self, hostname: str) -> Route | None:
        if hostname != "hello.localhost":
            return None
        return Route(hostname=hostname, workload=self.app.id, organization=self.app.organization, revision=1)

    async def rouse(self, workload: str) -> None:
        assert workload == self.app.id
        self.roused += 1
        if self.on_rouse is not None:
            await self.on_rouse()

    async def __aenter__(self) -> "Door":
        await self.waker.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.instances:
            server.close()
        await self.waker.close()

    @property
    def port(self) -> int:
        return int(self.waker.address.rpartition(":")[2])

    async def awake(self, answer: Answer) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await answer(reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self.instances.append(server)
        self.waker.tell(self.app.id, (f"127.0.0.1:{server.sockets[0].getsockname()[1]}",))

    async def say(self, text: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(text)
            return await reader.read()
        finally:
            writer.close()


async def test_a_body_is_handed_on_and_nothing_behind_it(tmp_path: Any) -> None:
    async with Door(tmp_path) as door:
        seen: list[bytes] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            body = b""
            while not body.endswith(b"0\r\n\r\n") and not body.endswith(b"12345"):
                body += await reader.read(100)
            await asyncio.sleep(0.1)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            writer.write(b"HTTP/1.1 201 Created\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
            seen.append(head + body)

        head = b"POST /x HTTP/1.1\r\nHost: hello.localhost:80\r\nX-Mine: 1\r\n"
        waiting = asyncio.create_task(
            door.say(head + b"Content-Length: 5\r\n\r\n12345GET / HTTP/1.1\r\nHost: other\r\n\r\n")
        )
        await eventually(lambda: _true(lambda: door.roused > 0), what="a request")
        await door.awake(answer)
        said = await waiting
        assert b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok" in said
        chunked = b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n"
        assert b"201" in await door.say(head + chunked + b"GET /y")
        first, second = seen
        assert first.endswith(b"X-Mine: 1\r\nContent-Length: 5\r\nConnection: close\r\n\r\n12345")
        assert second.endswith(b"3;a=b\r\nabc\r\n0\r\n\r\n")


async def test_another_protocol_goes_through(tmp_path: Any) -> None:
    async with Door(tmp_path) as door:

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\n" + UPGRADE)
            while data := await reader.read(100):
                writer.write(data.upper())
                await writer.drain()

        await door.awake(echo)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n" + UPGRADE)
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for word in (b"one", b"two"):
            writer.write(word)
            assert await reader.readexactly(3) == word.upper()
        assert door.waker.busy(door.app.id)
        writer.close()
        await eventually(lambda: _true(lambda: not door.waker.busy(door.app.id)), what="its end")


async def test_what_cannot_be_is_refused_in_words(tmp_path: Any) -> None:
    async with Door(tmp_path) as door:
        get = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n"
        for text, status in (
            (b"GET / HTTP/1.1\r\nHost: unknown.localhost\r\n\r\n", b"503"),
            (b"GET / HTTP/1.1\r\n\r\n", b"400"),
            (get + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
            (get + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
            (get + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"400"),
            (get + b"X: 1\r\n folded\r\n\r\n", b"400"),
            (get + b"Content-Length : 5\r\n\r\n", b"400"),
            (get + b"X: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        ):
            assert (await door.say(text)).split()[1] == status, text[:80]
        assert door.roused == 0
        # It may not run any more: whoever waits is told, and it is not woken.
        waiting = asyncio.create_task(door.say(get + b"\r\n"))
        await eventually(lambda: _true(lambda: door.roused > 0), what="a request")
        door.record.desired = wanted(door.app.model_copy(update={"state": "stopped"}))
        assert b"the app does not run" in await waiting
        roused = door.roused
        assert b" 503 " in await door.say(get + b"\r\n")
        assert door.roused == roused


async def test_those_who_wait_are_bounded_in_number_and_time(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("node_agent.waker.MOST_OF_ONE", 3)
    monkeypatch.setattr("node_agent.waker._BESIDE_START", 0.0)
    async with Door(tmp_path) as door:
        get = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n"

        async def fails() -> None:
            door.waker.failed(door.app.id, "web.1 ended 3 times before it was ready")

        door.on_rouse = fails
        said = await asyncio.gather(*(door.say(get) for _ in range(5)))
        full = [text for text in said if b"too many requests wait" in text]
        late = [text for text in said if b"did not wake within 1.5 s: web.1 ended 3 times" in text]
        assert (len(full), len(late)) == (2, 3), said
        assert all(b"Retry-After:" in text for text in said)
        # One who goes away leaves his place at once.
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get)
        await eventually(lambda: _true(lambda: door.waker.busy(door.app.id)), what="somebody")
        writer.close()
        await eventually(lambda: _true(lambda: not door.waker.busy(door.app.id)), seconds=1.4, what="nobody")
        del reader


async def test_an_app_cannot_keep_the_proxys_connection(tmp_path: Any) -> None:
    async with Door(tmp_path) as door:

        async def stays(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nKeep-Alive: timeout=60\r\n\r\n")
            door.got.append(await reader.read(100))

        async def changes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: mine\r\nConnection: Upgrade\r\n\r\n")

        get = b"GET / HTTP/1.1\r\nHost: hello.localhost\r\n\r\n"
        await door.awake(stays)
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(get)
        assert (await reader.readuntil(b"\r\n\r\n")).endswith(b"Connection: close\r\n\r\n")
        writer.write(b"GET /of-another HTTP/1.1\r\nHost: other.localhost\r\n\r\n")
        writer.close()
        await eventually(lambda: _true(lambda: bool(door.got)), what="the end")
        assert door.got == [b""]
        await door.awake(changes)
        assert (await door.say(get)).split()[1] == b"502"
