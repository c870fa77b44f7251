"""A container engine in memory, with instances that really listen, and that can be told to fail.

An instance answers HTTP on a loopback address of its own with its id, so that health checks and a proxy in
front of it are real. What it does depends on its command: none serves, "exit 3" ends with that code, "talk"
says more each time it is listened to, anything else runs and does not listen. `images` says the same for an
image whose command is not given.
That of a job does, step by step: "echo words", "env NAME", "cat" (says what it is told), "sleep 5", "exit 3".
"""

import asyncio
import contextlib
import itertools
import os
import re
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from contracts.errors import NotFound, ProviderFailed, Unavailable
from contracts.lines import Line
from node_agent.engine import (
    Blueprint,
    Chunk,
    Credentials,
    Ending,
    EngineEvent,
    EngineInfo,
    Instance,
    State,
    Usage,
)

_EXIT = re.compile(r"^exit (\d+)$")
_SERVE = ""
# Loopback addresses of this process's own: several runs of the tests may share the machine.
_ADDRESSES = (IPv4Address("127.64.0.0") + os.getpid() % 4096 * 1024 + n for n in itertools.count(1))


class FakeSession:
    """A process that is talked to: it says what it has to say, and with `cat` what it is told."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self.heard: asyncio.Queue[bytes | None] = asyncio.Queue()
        # As of a pipe: who writes to a full one waits.
        self._room = asyncio.Semaphore(8)
        self.sizes: list[tuple[int, int]] = []
        self.code: int | None = None
        self.closed = False

    async def read(self) -> Chunk | None:
        return await self.said.get()

    async def write(self, data: bytes) -> None:
        await self._room.acquire()
        self.heard.put_nowait(data)

    async def hear(self) -> bytes | None:
        """As the process does."""
        heard = await self.heard.get()
        self._room.release()
        return heard

    async def end_input(self) -> None:
        self.heard.put_nowait(None)

    async def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def exit_code(self) -> int | None:
        return self.code

    async def close(self) -> None:
        self.closed = True
        self.heard.put_nowait(None)


@dataclass(eq=False)
class _Container:
    blueprint: Blueprint
    address: str
    behaviour: str
    state: State = "created"
    exit_code: int | None = None
    restarts: int = 0
    server: asyncio.Server | None = None
    connections: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)
    restart: asyncio.Task[None] | None = None
    log: deque[str] = field(default_factory=lambda: deque(maxlen=10_000))
    # The moment of each line of the log.
    times: deque[int] = field(default_factory=lambda: deque(maxlen=10_000))
    out_of_memory: bool = False
    starts: int = 0
    sessions: list[FakeSession] = field(default_factory=list)
    work: asyncio.Task[None] | None = None

    def say(self, text: str) -> None:
        last = self.times[-1] if self.times else 0
        self.times.append(max(time.time_ns(), last + 1))
        self.log.append(text)

    def seen(self) -> Instance:
        return Instance(self.blueprint.identity, self.state, self.address, self.exit_code)


class FakeReader:
    """Reads on in what a container has said, also when it is gone."""

    def __init__(self, container: _Container, after: int) -> None:
        self._container = container
        self._after = after

    def read(self, most: int) -> list[Line]:
        if self._container.behaviour == "talk" and self._container.state == "running":
            self._container.say("and another thing")
        said = zip(tuple(self._container.times), tuple(self._container.log), strict=False)
        found = [Line(at, "stdout", text) for at, text in said if at > self._after]
        if found:
            self._after = found[-1].at
        return found

    def rest(self) -> list[Line]:
        return []

    def close(self) -> None:
        """Nothing is open."""


class FakeEngine:
    def __init__(self) -> None:
        self.images: dict[str, str] = {"app:1": _SERVE, "app:2": _SERVE, "app:3": _SERVE}
        # What `pull` finds, and whom it asks for a password.
        self.registry: dict[str, str] = {}
        self.credentials: Credentials | None = None
        self.start_seconds = 0.0
        self.answer_seconds = 0.0
        self.calls: list[str] = []
        self.reasserted = 0
        self.running = True
        # It tells of nothing that happens.
        self.silent = False
        self.restart_seconds = 0.05
        # What a command of a health check does; once an instance is named, to that one alone.
        self.checks: dict[str, str] = {}
        self.failing_check_of: str | None = None
        # Bytes an instance has written to its disk.
        self.writes: dict[str, int] = {}
        self.uses: dict[str, Usage] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._containers: dict[str, _Container] = {}
        self._listeners: list[asyncio.Queue[EngineEvent | None]] = []

    # --- what a test does to it --------------------------------------------------------------------

    def fail_next(self, call: str, error: Exception) -> None:
        self._failures[call].append(error)

    async def die(self, instance: str, exit_code: int = 1) -> None:
        """The process ends; the engine starts it again, as its restart policy says."""
        await self._end(self._containers[instance], exit_code, again=True)

    async def starve(self, instance: str) -> None:
        """It wants more memory than it has; the engine starts it again."""
        self._containers[instance].out_of_memory = True
        await self._end(self._containers[instance], 137, again=True)

    async def kill(self, instance: str) -> None:
        """Somebody kills it through the engine: it stays down."""
        await self._end(self._containers[instance], 137, again=False)

    async def vanish(self, instance: str) -> None:
        """Somebody removes it."""
        await self.remove(instance)

    async def deafen(self, instance: str) -> None:
        """It runs on, and does not answer any more."""
        await self._close(self._containers[instance])

    def blueprints(self) -> list[Blueprint]:
        return [container.blueprint for container in self._containers.values()]

    def count(self, call: str) -> int:
        return sum(name == call for name in self.calls)

    def mounts_of(self, job: str) -> dict[str, str]:
        """What a job sees where."""
        made = (c.blueprint for c in self._containers.values())
        return {m.target: m.source for b in made if b.identity.job == job for m in b.mounts}

    async def lose(self) -> None:
        """The engine's connection breaks: streams of events end."""
        for queue in self._listeners:
            queue.put_nowait(None)

    # --- the port --------------------------------------------------------------------------------------

    def _called(self, call: str) -> None:
        self.calls.append(call)
        if not self.running:
            raise Unavailable("the container engine does not answer")
        if self._failures[call]:
            raise self._failures[call].popleft()

    def _container(self, instance: str) -> _Container:
        try:
            return self._containers[instance]
        except KeyError:
            raise NotFound(f"no such instance: {instance}") from None

    async def info(self) -> EngineInfo:
        self._called("info")
        return EngineInfo("Fake", "1", 4000, 8192, "x86_64", ("fake",))

    async def reassert(self) -> None:
        self._called("reassert")
        self.reasserted += 1

    async def image_present(self, image: str) -> bool:
        self._called("image_present")
        return image in self.images

    async def pull(self, image: str, credentials: Credentials | None = None) -> None:
        self._called("pull")
        if image not in self.registry or credentials != self.credentials:
            raise ProviderFailed(f"image {image} could not be pulled: not found")
        self.images[image] = self.registry[image]

    async def create(self, blueprint: Blueprint) -> Instance:
        self._called("create")
        if blueprint.image not in self.images:
            raise NotFound(f"no such image: {blueprint.image}")
        behaviour = self.images[blueprint.image] if blueprint.command is None else blueprint.command
        container = _Container(blueprint, str(next(_ADDRESSES)), behaviour)
        self._containers[blueprint.identity.instance] = container
        return container.seen()

    async def start(self, instance: str) -> None:
        self._called("start")
        container = self._container(instance)
        if self.start_seconds:
            await asyncio.sleep(self.start_seconds)
        if container.state != "running":
            await self._to_its_end(self._begin(container))

    async def stop(self, instance: str, grace_seconds: float) -> int | None:
        self._called("stop")
        container = self._containers.get(instance)
        if container is None:
            return None
        if container.state in ("running", "restarting"):
            code = container.exit_code if container.state == "restarting" else 0
            await self._to_its_end(self._end(container, code or 0, again=False))
        return container.exit_code

    async def remove(self, instance: str) -> None:
        self._called("remove")
        container = self._containers.pop(instance, None)
        if container is None:
            return
        if container.state in ("running", "restarting"):
            await self._to_its_end(self._end(container, 137, again=False))
        self._tell("removed", container)

    async def instances(self, workload: str | None = None) -> tuple[Instance, ...]:
        self._called("instances")
        return tuple(
            container.seen()
            for container in self._containers.values()
            if workload in (None, container.blueprint.identity.workload)
            and container.blueprint.identity.job is None
        )

    async def jobs(self) -> tuple[Instance, ...]:
        self._called("jobs")
        return tuple(c.seen() for c in self._containers.values() if c.blueprint.identity.job is not None)

    async def ending(self, instance: str) -> Ending | None:
        self._called("ending")
        container = self._container(instance)
        if container.state not in ("exited", "restarting"):
            return None
        return Ending(container.exit_code or 0, container.out_of_memory)

    async def output(self, instance: str) -> FakeSession:
        self._called("output")
        container, session = self._container(instance), FakeSession()
        for line in container.log:
            session.said.put_nowait(Chunk("stdout", f"{line}\n".encode()))
        if container.state == "exited":
            session.said.put_nowait(None)
        else:
            container.sessions.append(session)
        return session

    async def attach(self, instance: str) -> FakeSession:
        self._called("attach")
        container, session = self._container(instance), FakeSession()
        container.sessions.append(session)
        return session

    async def execute(
        self, instance: str, command: tuple[str, ...], environment: dict[str, str], *, terminal: bool
    ) -> FakeSession:
        self._called("execute")
        container = self._container(instance)
        if container.state != "running":
            raise ProviderFailed(f"{instance} does not run")
        session = FakeSession()
        obeyed = " ".join(command)
        if obeyed in self.checks:
            healthy = self.failing_check_of not in (None, instance)
            obeyed = "exit 0" if healthy else self.checks[obeyed]
        work = self._obey(obeyed, container.blueprint.environment | environment, session)

        async def run() -> None:
            session.code = await work
            session.said.put_nowait(None)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return session

    def say(self, instance: str, text: str) -> None:
        self._containers[instance].say(text)

    async def lines(self, instance: str, after: int) -> FakeReader:
        self._called("lines")
        return FakeReader(self._container(instance), after)

    async def log_tail(self, instance: str, lines: int) -> tuple[str, ...]:
        self._called("log_tail")
        return tuple(self._container(instance).log)[-lines:]

    async def usage(self, instance: str) -> Usage:
        self._called("usage")
        container = self._container(instance)
        used = self.uses.get(container.blueprint.identity.instance)
        return used or Usage(0.5, 16 * 2**20)

    async def written(self, instance: str, most: int) -> int:
        self._called("written")
        return self.writes.get(self._container(instance).blueprint.identity.instance, 0)

    async def events(self) -> AsyncIterator[EngineEvent | None]:
        self._called("events")
        queue: asyncio.Queue[EngineEvent | None] = asyncio.Queue()
        self._listeners.append(queue)
        try:
            yield None
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._listeners.remove(queue)
        raise Unavailable("the container engine ended its stream of events")

    async def close(self) -> None:
        """The agent lets go of it; what it runs, runs on."""
        self.calls.append("close")

    # --- the life of a container -----------------------------------------------------------------------

    async def _to_its_end(self, work: Coroutine[Any, Any, None]) -> None:
        """An engine finishes what it was asked for, also when the asker is gone."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def end(self) -> None:
        """With everything it runs."""
        for container in self._containers.values():
            if container.restart is not None:
                container.restart.cancel()
            container.state = "exited"
            await self._close(container)
            await asyncio.gather(*container.connections)

    async def _begin(self, container: _Container) -> None:
        container.state, container.exit_code, container.out_of_memory = "running", None, False
        container.starts += 1
        if container.blueprint.identity.job is not None:
            container.work = asyncio.create_task(self._work(container))
            self._tasks.add(container.work)
            container.work.add_done_callback(self._tasks.discard)
            return
        container.say(f"starting {container.blueprint.identity.instance}")
        if container.behaviour == _SERVE:
            container.server = await asyncio.start_server(
                lambda reader, writer: self._serve(container, reader, writer),
                container.address,
                container.blueprint.identity.port,
            )
        self._tell("started", container)
        if end := _EXIT.match(container.behaviour):
            container.say(f"ending with {end[1]}")
            await self._end(container, int(end[1]), again=True)

    async def _end(self, container: _Container, code: int, *, again: bool) -> None:
        if container.restart is not None and container.restart is not asyncio.current_task():
            container.restart.cancel()
        container.state, container.exit_code = ("restarting" if again else "exited"), code
        if container.work is not None and container.work is not asyncio.current_task():
            container.work.cancel()
        for session in container.sessions:
            session.said.put_nowait(None)
        container.sessions.clear()
        await self._close(container)
        self._tell("died", container)
        if again:
            container.restart = asyncio.create_task(self._restart(container))

    async def _work(self, container: _Container) -> None:
        """What a job's container does, to its end."""
        session = container.sessions[0] if container.sessions else FakeSession()

        def log(text: str) -> None:
            container.say(text)
            for listener in container.sessions:
                listener.said.put_nowait(Chunk("stdout", f"{text}\n".encode()))

        code = await self._obey(container.behaviour, container.blueprint.environment, session, log)
        await self._end(container, code, again=False)

    @staticmethod
    async def _obey(
        command: str,
        environment: dict[str, str],
        session: FakeSession,
        log: Callable[[str], None] | None = None,
    ) -> int:
        def say(text: str) -> None:
            if log is not None:
                log(text)
            else:
                session.said.put_nowait(Chunk("stdout", f"{text}\n".encode()))

        for step in command.removeprefix("/bin/sh -c ").split(";"):
            verb, _, rest = step.strip().partition(" ")
            match verb:
                case "echo":
                    say(rest)
                case "env":
                    say(environment.get(rest, ""))
                case "sleep":
                    await asyncio.sleep(float(rest))
                case "exit":
                    return int(rest)
                case "cat":
                    while (heard := await session.hear()) not in (None, b"\x04"):
                        session.said.put_nowait(Chunk("stdout", heard))
                case _:
                    return 127
        return 0

    async def _restart(self, container: _Container) -> None:
        container.restarts += 1
        await asyncio.sleep(self.restart_seconds)
        if container.state == "restarting":
            await self._begin(container)

    async def _close(self, container: _Container) -> None:
        if container.server is not None:
            container.server.close()
            container.server = None
        for writer in tuple(container.connections.values()):
            writer.close()

    def _tell(self, kind: str, container: _Container) -> None:
        identity = container.blueprint.identity
        if identity.job is not None:
            return
        event = EngineEvent(
            kind,  # type: ignore[arg-type]
            identity.instance,
            identity.workload,
            container.exit_code if kind == "died" else None,
            kind == "died" and container.out_of_memory,
        )
        for queue in () if self.silent else self._listeners:
            queue.put_nowait(event)

    async def _serve(
        self, container: _Container, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        body = f"{container.blueprint.identity.instance} {container.blueprint.image}\n".encode()
        answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
            len(body),
            body,
        )
        if container.server is None:
            # It came while the instance ended.
            writer.close()
            return
        task = asyncio.current_task()
        assert task is not None
        container.connections[task] = writer
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    if self.answer_seconds:
                        await asyncio.sleep(self.answer_seconds)
                    writer.write(answer)
                    await writer.drain()
            finally:
                del container.connections[task]
                writer.close()
