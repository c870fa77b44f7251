"""A node under test: the real agent on NATS and Traefik, with an engine that can be told to fail."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from contracts.events import InstanceStarted, InstanceStopped, RolloutFinished
from contracts.ids import new_id
from contracts.money import Rate
from contracts.workload import HealthCheck, Limits, NodeWorkload, Process, Route, Slot, WorkloadSpec
from embedded.traefik import Traefik
from node_agent.app import create
from node_agent.engine import ContainerEngine
from node_agent.settings import NodeAgentSettings
from runtime.bus import Bus
from runtime.host import Host
from runtime.tasks import end

from tests.harness import Harness, eventually, free_port
from tests.ports.engines import DockerHands, docker_hands
from tests.ports.fake_engine import FakeEngine
from tests.ports.web import get

NODE = "local"
_TASKS = ("node-agent.", "workload ", "departure ", "watch ", "pull ", "job ")


def spec(**changes: Any) -> WorkloadSpec:
    """An app that is found ready, or not, within moments."""
    return WorkloadSpec.model_validate(
        {
            "id": new_id("app"),
            "name": "hello",
            "organization": new_id("org"),
            "project": new_id("prj"),
            "generation": 1,
            "state": "running",
            "region": "local",
            "plan": "small",
            "limits": Limits(cpu_millis=500, memory_mb=64, disk_mb=64, pids=64),
            "rate": Rate(micros_per_hour=7_000, currency="USD"),
            "uid": 100_000,
            "health": HealthCheck(interval_seconds=0.2, timeout_seconds=1, retries=3, start_seconds=1.5),
            "grace_seconds": 1,
            "image": "app:1",
            "release": new_id("rel"),
            "deployment": new_id("dep"),
            **changes,
        }
    )


def slots(number: int, process: str = "web") -> tuple[Slot, ...]:
    return tuple(Slot(process=process, index=index) for index in range(number))


def wanted(chosen: WorkloadSpec, revision: int = 1, count: int = 1) -> NodeWorkload:
    if not chosen.wants_instances:
        count = 0
    return NodeWorkload(node=NODE, revision=revision, spec=chosen, slots=slots(count))


def next_release(before: WorkloadSpec, **changes: Any) -> WorkloadSpec:
    return before.model_copy(
        update={
            "generation": before.generation + 1,
            "release": new_id("rel"),
            "deployment": new_id("dep"),
            **changes,
        }
    )


def replicas(before: WorkloadSpec, number: int) -> WorkloadSpec:
    processes = {"web": Process(replicas=number)}
    return before.model_copy(update={"generation": before.generation + 1, "processes": processes})


@dataclass
class World:
    """The agent, and everybody it deals with."""

    harness: Harness
    traefik: Traefik
    engine: FakeEngine
    bus: Bus
    agents: list[Host] = field(default_factory=list)
    # Set by a test that puts another engine below the agent.
    other_engine: ContainerEngine | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def agent_settings(self) -> NodeAgentSettings:
        return NodeAgentSettings(
            routes=self.traefik.routes,
            ingress_url=f"http://127.0.0.1:{self.traefik.port}",
            **{"drain_seconds": 2.0, "reconcile_seconds": 60.0, **self.settings},
        )

    async def start(self) -> Host:
        settings = self.agent_settings()
        return await self.harness.start(
            "node-agent", lambda runtime: create(runtime, self.other_engine or self.engine, None, settings)
        )

    async def stop(self) -> None:
        await self.harness.stop("node-agent")

    async def crash(self) -> None:
        """SIGKILL as far as a task can tell: nothing is put in order."""
        host = self.harness.hosts.pop("node-agent")
        stray = [task for task in asyncio.all_tasks() if task.get_name().startswith(_TASKS)]
        await end(stray, patience=0.2)
        # The kernel closes what a dead process has listened at.
        node: Any = getattr(host.service.on_stop, "__self__", None)
        await node._site.waker.close()
        await host.runtime.bus.close()

    async def want(self, workload: NodeWorkload) -> None:
        await self.bus.bucket("desired").put(
            f"{workload.node}.{workload.spec.id}", workload.model_dump_json().encode()
        )

    async def route(self, chosen: WorkloadSpec, hostname: str, revision: int = 1) -> None:
        route = Route(
            hostname=hostname, workload=chosen.id, organization=chosen.organization, revision=revision
        )
        await self.bus.bucket("routes").put(hostname, route.model_dump_json().encode())

    async def live(self, count: int = 1, **changes: Any) -> tuple[WorkloadSpec, list[str]]:
        """A workload that serves at hello.localhost, and its instances."""
        app = spec(**changes)
        await self.route(app, "hello.localhost")
        await self.want(wanted(app, count=count))
        await self.start()
        names = await self.running(app, count)
        assert (await self.finished(app)).ok
        await self.answers("hello.localhost", names[0])
        return app, names

    def now(self) -> datetime:
        return self.harness.clock.now()

    async def get(self, hostname: str) -> tuple[int, str]:
        return await get(self.traefik.port, hostname)

    async def answers(self, hostname: str, text: str, seconds: float = 30) -> None:
        async def look() -> bool:
            status, body = await self.get(hostname)
            return status == 200 and text in body

        await eventually(look, seconds=seconds, what=f"{text!r} from {hostname}")

    async def finished(self, chosen: WorkloadSpec, generation: int | None = None) -> RolloutFinished:
        return await self.harness.event(
            RolloutFinished,
            lambda e: (e.workload, e.generation) == (chosen.id, generation or chosen.generation),
        )

    async def started(self) -> list[InstanceStarted]:
        return await self.harness.events(InstanceStarted)

    async def stopped(self, instance: str) -> InstanceStopped:
        return await self.harness.event(InstanceStopped, lambda e: e.instance == instance)

    async def running(self, chosen: WorkloadSpec, number: int = 1) -> list[str]:
        """The instances of a workload, once there are just so many and they run."""

        async def look() -> list[str] | None:
            found = await (self.other_engine or self.engine).instances(chosen.id)
            names = sorted(instance.identity.instance for instance in found)
            running = all(instance.state == "running" for instance in found)
            return names if len(names) == number and running else None

        if number:
            return await eventually(look, what=f"{number} instances")

        async def none() -> bool:
            return not await (self.other_engine or self.engine).instances(chosen.id)

        await eventually(none, what="no instance")
        return []


@pytest.fixture(scope="session")
def traefik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traefik]:
    server = Traefik(tmp_path_factory.mktemp("traefik"), free_port(), free_port())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture
def ingress(traefik: Traefik) -> Iterator[Traefik]:
    """With nothing routed."""
    yield traefik
    for path in traefik.routes.iterdir():
        path.unlink()


@pytest.fixture(scope="session")
async def docker() -> AsyncIterator[DockerHands]:
    """The real engine, under another node's name than the conformance suite's."""
    async with docker_hands("rollout") as hands:
        yield hands


@pytest.fixture
async def real(harness: Harness, ingress: Traefik, docker: DockerHands) -> AsyncIterator[World]:
    """The same world with real containers."""
    made = World(harness, ingress, FakeEngine(), await harness.everybody(), other_engine=docker.engine)
    yield made
    if "node-agent" in harness.hosts:
        await made.stop()
    for instance in (*await docker.engine.instances(), *await docker.engine.jobs()):
        await docker.engine.remove(instance.identity.instance)


@pytest.fixture
async def world(harness: Harness, ingress: Traefik, tmp_path: Path) -> AsyncIterator[World]:
    engine = FakeEngine()
    made = World(harness, ingress, engine, await harness.everybody())
    yield made
    if "node-agent" in harness.hosts:
        await made.stop()
    await engine.end()
