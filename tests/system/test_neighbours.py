"""Any node serves any hostname: three real agents with an ingress each, a real scheduler between them.

Only the engines are played, whose instances really answer; the test says what gateway and domains would.
"""

import asyncio
import os
import signal
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from contracts.events import AppChanged
from contracts.ids import new_id
from contracts.mesh import Peer
from contracts.queries import NodeChanged, UsageOf, Workloads, WorkloadsAfter
from contracts.workload import Endpoints, HealthCheck, Needs, Process, Route, WorkloadSpec
from embedded.traefik import MeshPorts, Traefik
from node_agent.app import create
from node_agent.settings import NodeAgentSettings
from runtime.bus import Bus

from tests.harness import Harness, eventually, free_port
from tests.node_agent.conftest import next_release
from tests.ports.fake_engine import FakeEngine
from tests.ports.web import Load, get
from tests.scheduler.samples import spec

HOST = "shop.example.com"


@dataclass
class Place:
    """A node and its ingress."""

    name: str
    harness: Harness
    traefik: Traefik
    mesh: MeshPorts
    engine: FakeEngine
    settings: NodeAgentSettings

    async def start(self) -> None:
        await self.harness.start(
            "node-agent",
            lambda runtime: create(runtime, self.engine, settings=self.settings),
            alias=self.name,
            node=self.name,
        )

    async def names(self) -> set[str]:
        found = await self.engine.instances()
        return {i.identity.instance for i in found if i.state == "running"}

    async def turns(self, number: int) -> Counter[str]:
        """Who answers requests that enter here, each on a connection of its own."""
        answers = [await get(self.traefik.port, HOST) for _ in range(number)]
        return Counter(body.split()[0] if status == 200 else str(status) for status, body in answers)

    async def evenly(self, number: int) -> set[str]:
        """The instances that answer, once each of so many has the same number of turns."""

        async def look() -> Counter[str] | None:
            found = await self.turns(3 * number)
            return found if len(found) == number and set(found.values()) == {3} else None

        return set(await eventually(look, seconds=20, what=f"{number} instances in turn at {self.name}"))

    def kill_ingress(self) -> None:
        pid = self.traefik.daemon.pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)


@dataclass
class Estate:
    harness: Harness
    bus: Bus
    places: dict[str, Place]
    specs: dict[str, WorkloadSpec]

    def __getitem__(self, name: str) -> Place:
        return self.places[name]

    async def workloads(self, query: WorkloadsAfter) -> Workloads:
        return Workloads(specs=() if query.after else tuple(self.specs.values()), next=None)

    async def change(self, wanted: WorkloadSpec) -> None:
        self.specs[wanted.id] = wanted
        await self.harness.publish(AppChanged(spec=wanted))

    async def peer(self, name: str) -> Peer:
        async def look() -> Peer | None:
            entry = await self.bus.bucket("peers").get(name)
            return None if entry is None else Peer.model_validate_json(entry.value)

        return await eventually(look, what=f"{name} as a peer")

    async def running(self, number: int, of: WorkloadSpec) -> set[str]:
        """The instances everywhere, once there are so many and all are as specified."""

        async def look() -> set[str] | None:
            found = [i for place in self.places.values() for i in await place.engine.instances(of.id)]
            as_wanted = all(
                i.state == "running" and i.identity.fingerprint == of.fingerprint() for i in found
            )
            return {i.identity.instance for i in found} if as_wanted and len(found) == number else None

        return await eventually(look, seconds=30, what=f"{number} instances of generation {of.generation}")


@asynccontextmanager
async def place(harness: Harness, folder: Path, name: str, cpu_millis: int) -> AsyncIterator[Place]:
    mesh = MeshPorts("127.0.0.1", free_port(), free_port())
    traefik = Traefik(folder / name, free_port(), free_port(), mesh=mesh)
    engine = FakeEngine()
    settings = NodeAgentSettings(
        region="eu",
        routes=traefik.routes,
        ingress_url=f"http://127.0.0.1:{traefik.port}",
        mesh_port=mesh.port,
        mesh_host="127.0.0.1",
        mesh_here_port=mesh.here,
        drain_seconds=2,
        reconcile_seconds=2,
        heartbeat_seconds=1,
        cpu_millis=cpu_millis,
    )
    traefik.start()
    try:
        await asyncio.to_thread(traefik.wait_ready)
        yield Place(name, harness, traefik, mesh, engine, settings)
    finally:
        traefik.stop()
        await engine.end()


@pytest.fixture
async def estate(harness: Harness, tmp_path: Path) -> AsyncIterator[Estate]:
    async with (
        place(harness, tmp_path, "n1", 4000) as one,
        place(harness, tmp_path, "n2", 4000) as two,
        # Room for nothing: it only serves what others run.
        place(harness, tmp_path, "n3", 10) as three,
    ):
        bus = await harness.everybody()
        made = Estate(harness, bus, {p.name: p for p in (one, two, three)}, {})
        await harness.answers(WorkloadsAfter, made.workloads)
        await harness.start("scheduler")
        for each in made.places.values():
            await each.start()
        yield made
        await harness.close_services()


async def serve(estate: Estate, replicas: int, **changes: Any) -> WorkloadSpec:
    app = spec(
        image="app:1",
        needs=Needs(spread=True),
        processes={"web": Process(replicas=replicas)},
        health=HealthCheck(interval_seconds=0.2, timeout_seconds=1, retries=3, start_seconds=5),
        grace_seconds=1,
        **changes,
    )
    route = Route(hostname=HOST, workload=app.id, organization=app.organization, revision=1)
    await estate.bus.bucket("routes").put(HOST, route.model_dump_json().encode())
    await estate.change(app)
    return app


@pytest.mark.promise("R17.3")
async def test_any_node_serves_any_hostname(estate: Estate) -> None:
    for name in estate.places:
        assert (await estate.peer(name)).host == "127.0.0.1"
    app = await serve(estate, 3)
    everybody = await estate.running(3, app)
    # Wherever a request enters, each instance has its turn.
    for name in ("n3", "n1", "n2"):
        assert await estate[name].evenly(3) == everybody
    await strangers_get_nothing(estate)
    await nobody_is_believed_about_what_is_not_his(estate, app)

    # A release takes the place of another while requests enter where nothing of it runs.
    for engine in (estate["n1"].engine, estate["n2"].engine):
        engine.answer_seconds = 0.002
    async with Load(estate["n3"].traefik.port, HOST) as far, Load(estate["n1"].traefik.port, HOST) as near:
        await far.more(100)
        for number in (2, 3):
            app = next_release(app, image=f"app:{number}")
            await estate.change(app)
            await estate.running(3, app)
        await asyncio.gather(far.more(100), near.more(100))
        # So does another node of one that is drained.
        await estate.bus.ask(NodeChanged(node="n2", draining=True))
        await eventually(lambda: empty(estate["n2"]), seconds=30, what="n2 drained")
        await asyncio.gather(far.more(100), near.more(100))
        await estate.bus.ask(NodeChanged(node="n2", draining=False))
    assert (far.failed, near.failed) == (0, 0), (far.answers, near.answers)
    assert far.total > 1000
    for name in estate.places:
        assert await estate[name].evenly(3) == await estate["n1"].names()


async def empty(where: Place) -> bool:
    return not await where.engine.instances()


async def strangers_get_nothing(estate: Estate) -> None:
    """Neither from the internet nor from an instance: whoever has no certificate is not spoken to."""
    port = estate["n1"].mesh.port
    asked = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode()
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
    pretender = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pretender.check_hostname, pretender.verify_mode = False, ssl.CERT_NONE
    # A certificate it has made itself, as every ingress has one for hostnames without any.
    pretender.load_cert_chain(estate["n1"].traefik.routes.parent / "certificate.pem")
    for context in (anybody, pretender):
        for wanted in (HOST, "mesh.berth.invalid", "n1.mesh.berth.invalid"):
            assert await answer_over_tls(port, context, wanted, asked) == b""
    status, _ = await get(port, HOST)
    assert status == 404


async def answer_over_tls(port: int, context: ssl.SSLContext, wanted: str, asked: bytes) -> bytes:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=wanted)
        try:
            writer.write(asked)
            return await reader.read()
        finally:
            writer.close()
    except (ssl.SSLError, ConnectionError):
        return b""


async def nobody_is_believed_about_what_is_not_his(estate: Estate, app: WorkloadSpec) -> None:
    """A node says that it has a hundred instances of a workload it was never given."""
    claim = Endpoints(
        node="n3",
        workload=app.id,
        addresses=tuple(f"127.0.0.1:{n}" for n in range(1, 101)),
        at=estate.harness.clock.now(),
    )
    await estate.bus.bucket("endpoints").put(f"{app.id}.n3", claim.model_dump_json().encode())
    # And what nobody can read stops nothing.
    await estate.bus.bucket("endpoints").put(f"{new_id('app')}.n1", b"{")
    await estate.bus.bucket("places").put(app.id + "x", b"[]")
    await asyncio.sleep(0.5)
    assert len(await estate["n1"].evenly(3)) == 3


async def test_a_request_wakes_an_app_from_any_node_and_is_counted_once(estate: Estate) -> None:
    app = await serve(estate, 2, sleep_seconds=1)
    assert len(await estate.running(2, app)) == 2
    await estate["n3"].evenly(2)
    await eventually(lambda: asleep(estate), seconds=20, what="sleep everywhere")
    status, _ = await get(estate["n3"].traefik.port, HOST)
    assert status == 200
    # Each of its nodes wakes when its turn comes.
    assert await estate["n3"].evenly(2) == await estate.running(2, app)

    async def counted() -> int:
        return (await estate.bus.ask(UsageOf(workload=app.id))).traffic.requests

    await eventually(lambda: asleep(estate), seconds=20, what="sleep again")
    await asyncio.sleep(2)
    before = await counted()
    assert sum((await estate["n3"].turns(12)).values()) == 12
    await eventually(lambda: equal(counted, before + 12), what="every request once")
    await asyncio.sleep(1.5)
    assert await counted() == before + 12


async def asleep(estate: Estate) -> bool:
    return all([await empty(where) for where in estate.places.values()])


async def equal(look: Callable[[], Awaitable[int]], number: int) -> bool:
    return await look() == number


async def test_a_dead_node_is_passed_over_and_nobody_has_to_tell_the_others(estate: Estate) -> None:
    app = await serve(estate, 4)
    everybody = await estate.running(4, app)
    assert await estate["n3"].evenly(4) == everybody
    alive = await estate["n1"].names()
    async with Load(estate["n3"].traefik.port, HOST, connections=4) as load:
        await load.more(100)
        estate["n2"].kill_ingress()
        await asyncio.sleep(2)
        answered = load.answers.copy()
        await load.more(200)
    # What was on its way there is lost, and nothing that came after.
    assert load.failed <= load.connections, load.answers
    since = load.answers - answered
    assert {body.split()[0] for (_, body) in since} <= alive
    estate["n2"].traefik.start()
    await asyncio.to_thread(estate["n2"].traefik.wait_ready)
    assert await estate["n3"].evenly(4) == everybody

    # With nobody to tell it anything an ingress goes on as it was, also after its agent was away.
    await estate.harness.stop("scheduler")
    await estate.harness.stop("n3")
    assert await estate["n3"].evenly(4) == everybody
    before = {path.name: path.stat().st_mtime_ns for path in estate["n3"].traefik.routes.iterdir()}
    await estate["n3"].start()
    await asyncio.sleep(1)
    assert {path.name: path.stat().st_mtime_ns for path in estate["n3"].traefik.routes.iterdir()} == before
    # Somebody tampers with a file: it is written again.
    path = estate["n3"].traefik.routes / f"{app.id}.yaml"
    path.unlink()

    async def there() -> bool:
        return await asyncio.to_thread(path.exists)

    await eventually(there, what="the file again")
    assert await estate["n3"].evenly(4) == everybody
