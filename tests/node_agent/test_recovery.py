"""The agent is killed, NATS is away, files are broken: nothing is forgotten, doubled or taken by mistake."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from contracts.events import InstanceStarted, InstanceStopped, RolloutFinished
from contracts.reports import NodeHeartbeat
from contracts.workload import NodeWorkload
from node_agent import app as node_agent_app
from node_agent.desired import Desired
from node_agent.ingress import TraefikProxy
from node_agent.tenure import Tenures
from runtime.bus import Bus
from runtime.host import Host

from tests.harness import eventually
from tests.node_agent.conftest import World, next_release, spec, wanted

# Every call after which the agent may be killed during a switch from one release to the next.
MOMENTS = [
    "create",
    "start",
    "begin",
    "came_to_life",
    "publish",
    "end",
    "stop",
    "remove",
    "finish",
    "reported",
]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_any_moment_of_a_switch(
    world: World, moment: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, (old,) = await world.live()
    killed = asyncio.Event()

    def cut(method: Callable[..., Any]) -> Callable[..., Any]:
        async def until_here(*arguments: Any, **named: Any) -> Any:
            if killed.is_set():
                await asyncio.Event().wait()
            if when == "after":
                await method(*arguments, **named)
            killed.set()
            await asyncio.Event().wait()

        return until_here

    owner: Any = next(
        kind for kind in (Tenures, Desired, TraefikProxy, world.engine) if hasattr(kind, moment)
    )
    with monkeypatch.context() as patched:
        patched.setattr(owner, moment, cut(getattr(owner, moment)))
        new = next_release(app, image="app:2")
        await world.want(wanted(new, 2))
        async with asyncio.timeout(30):
            await killed.wait()
        await world.crash()
    assert (await world.get("hello.localhost"))[0] == 200

    await world.start()
    assert (await world.finished(new)).ok
    (name,) = await world.running(new)
    await world.answers("hello.localhost", name)
    assert (await world.stopped(old)).reason == "replaced"
    assert world.engine.count("create") <= 3
    started = await world.harness.events(InstanceStarted)
    assert sorted(e.instance for e in started) == sorted((old, name))
    assert [e.instance for e in await world.harness.events(InstanceStopped)] == [old]
    assert [e.generation for e in await world.harness.events(RolloutFinished)] == [1, 2]


async def test_a_stop_of_the_agent_stops_no_app(world: World) -> None:
    app, (name,) = await world.live()
    await world.stop()
    assert await world.running(app) == [name]
    await world.answers("hello.localhost", name)
    calls = len(world.engine.calls)
    await world.start()
    await asyncio.sleep(0.3)
    assert await world.running(app) == [name]
    assert not {"create", "start", "stop", "remove"} & set(world.engine.calls[calls:])
    assert len(await world.harness.events(RolloutFinished)) == 1


async def test_one_that_vanished_while_the_agent_was_away_ended_when_it_was_last_seen(world: World) -> None:
    app, (name,) = await world.live()
    await world.stop()
    alive = world.harness.settings.state / "nodes" / "local" / "alive"
    await world.engine.vanish(name)
    world.harness.clock.advance(3600)
    await world.start()
    stopped = await world.stopped(name)
    assert stopped.reason == "lost"
    assert (stopped.stopped_at - stopped.started_at).total_seconds() < 60
    assert alive.exists()
    (other,) = await world.running(app)
    assert other != name


async def test_an_agent_starts_with_empty_files_of_its_own(world: World) -> None:
    """A full disk or a power cut leaves such."""
    app, (name,) = await world.live()
    await world.stop()
    state = world.harness.settings.state / "nodes" / "local"
    (state / "alive").write_text("")
    (world.traefik.routes.parent / "confirm").write_text("")
    await world.start()
    newer = next_release(app, image="app:2")
    await world.want(wanted(newer, 2))
    assert (await world.finished(newer)).ok
    assert (await world.stopped(name)).reason == "replaced"


class Cable:
    """NATS as the agent finds it: there, or away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def pull(self) -> None:
        self._monkeypatch.setattr(Bus, "connected", property(lambda _: False))

    def plug(self) -> None:
        self._monkeypatch.undo()


async def test_events_wait_on_disk_while_nats_is_away_and_come_in_order(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, (name,) = await world.live()
    cable = Cable(monkeypatch)
    cable.pull()
    await world.engine.vanish(name)
    (other,) = await world.running(app)
    await world.answers("hello.localhost", other)
    journal = world.harness.settings.state / "nodes" / "local" / "journal"

    async def waiting() -> bool:
        # Its end, as the engine told it; that it is lost; the start of another.
        return len(list(journal.iterdir())) == 3

    await eventually(waiting, what="three events on disk")
    await world.crash()
    cable.plug()
    await world.start()
    assert (await world.stopped(name)).reason == "lost"

    async def told() -> bool:
        return [e.instance for e in await world.started()] == [name, other]

    await eventually(told, what="both starts")
    assert not list(journal.iterdir())


async def test_without_nats_the_node_runs_from_what_it_knows(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, (name,) = await world.live()
    await world.stop()
    await world.engine.vanish(name)
    for path in world.traefik.routes.iterdir():
        path.unlink()
    await world.harness.client.jetstream().delete_stream("KV_desired")
    await world.harness.client.jetstream().delete_stream("KV_routes")
    await world.start()
    (other,) = await world.running(app)
    await world.answers("hello.localhost", other)


async def test_no_order_no_removal(world: World) -> None:
    app, (name,) = await world.live()
    bucket = world.bus.bucket("desired")
    key = f"local.{app.id}"
    # A key that is deleted, a value nobody can read, one that is for another node, and an older one.
    await bucket.delete(key)
    await bucket.put(key, b"{")
    other = wanted(app, 9).model_copy(update={"node": "n1", "slots": ()})
    await bucket.put(key, other.model_dump_json().encode())
    await world.want(wanted(next_release(app, image="app:3"), revision=1))
    marker = spec()
    await world.want(wanted(marker))
    assert (await world.finished(marker)).ok
    assert await world.running(app) == [name]
    await world.answers("hello.localhost", name)


async def test_a_broken_file_is_put_aside_and_the_others_are_loaded(world: World) -> None:
    app, (name,) = await world.live()
    await world.stop()
    folder = world.harness.settings.state / "nodes" / "local"
    (folder / "workloads" / "app_broken.json").write_text("{")
    (folder / "routes" / "bad.example.json").write_text("[]")
    (world.traefik.routes / "app_poison.yaml").write_text("{{ nonsense")
    await world.start()
    await world.answers("hello.localhost", name)
    put_aside = {path.name for path in (folder / "broken").iterdir()}
    assert put_aside == {"workloads-app_broken.json", "routes-bad.example.json"}
    new = next_release(app, image="app:2")
    await world.want(wanted(new, 2))
    assert (await world.finished(new)).ok


async def test_a_poisoned_route_stops_no_other(world: World) -> None:
    app, (name,) = await world.live()
    routes = world.bus.bucket("routes")
    poison = {"workload": app.id, "organization": app.organization, "revision": 1}
    for number, hostname in enumerate(["a`) || Host(`b", "{{env `HOME`}}", "UPPER.example", "*.example", ""]):
        value = json.dumps(poison | {"hostname": hostname})
        await routes.put(f"poison-{number}", value.encode())
    await routes.put("unreadable", b"\x00")
    # One that is another organization's own hostname, and leads to this workload.
    stranger = spec()
    await routes.put(
        "stolen.example",
        json.dumps(poison | {"hostname": "stolen.example", "organization": stranger.organization}).encode(),
    )
    await world.route(app, "second.localhost")
    await world.answers("second.localhost", name)
    await world.answers("hello.localhost", name)
    assert (await world.get("stolen.example"))[0] == 404
    assert (await world.get("b"))[0] == 404


async def test_a_hostname_moves_and_goes(world: World) -> None:
    app, _ = await world.live()
    other = spec()
    await world.want(wanted(other))
    (second,) = await world.running(other)
    assert (await world.finished(other)).ok
    await world.route(other, "hello.localhost", 2)
    await world.answers("hello.localhost", second)
    # What is late does not bring it back.
    await world.route(app, "hello.localhost", 1)
    await world.bus.bucket("routes").delete("hello.localhost")

    async def unknown() -> bool:
        return (await world.get("hello.localhost"))[0] == 404

    await eventually(unknown, what="404")


async def test_a_heartbeat_says_everything_and_comes_with_every_change(world: World) -> None:
    async with world.bus.subscribe(NodeHeartbeat, "local") as heard:
        app, (name,) = await world.live()

        async def told() -> NodeHeartbeat | None:
            beat = heard.get_nowait() if not heard.empty() else None
            return beat if beat is not None and beat.instances else None

        beat = await eventually(told, what="a heartbeat with the instance")
        (running,) = beat.instances
        assert (running.instance, running.workload, running.rate) == (name, app.id, app.rate)
        assert running.started_at == (await world.started())[0].started_at
        assert beat.capacity.cpu_millis >= 1000
        assert 0 < beat.used.memory_mb < beat.capacity.memory_mb
        assert 0 < beat.used.disk_mb < beat.capacity.disk_mb
        assert (beat.engine, beat.region) == ("Fake 1", "local")
        first = beat
        await world.stop()
        await world.start()

        async def again() -> NodeHeartbeat | None:
            beat = heard.get_nowait() if not heard.empty() else None
            return beat if beat is not None and beat.boot != first.boot else None

        beat = await eventually(again, what="a heartbeat of the next boot")
        assert [i.instance for i in beat.instances] == [name]


async def test_a_heartbeat_says_that_the_engine_has_been_away_for_a_while(world: World) -> None:
    world.settings["heartbeat_seconds"] = 0.2
    await world.live()
    async with world.bus.subscribe(NodeHeartbeat, "local") as heard:

        async def says(away: bool) -> bool:
            while not heard.empty():
                if heard.get_nowait().engine_away is away:
                    return True
            return False

        await eventually(lambda: says(False), what="a heartbeat")
        world.engine.running = False
        world.harness.clock.advance(30)
        # As when it is updated: nobody needs to know.
        await asyncio.sleep(0.5)
        assert not await says(True)
        world.harness.clock.advance(31)
        await eventually(lambda: says(True), what="the word that it is away")
        world.engine.running = True
        await eventually(lambda: says(False), what="the word that it is back")


async def test_two_agents_fit_one_process(world: World) -> None:
    """Nothing of the agent is global to the process."""
    app, _ = await world.live()
    elsewhere = world.harness.runtime("node-agent", node="n1")
    service = node_agent_app.create(elsewhere, world.engine)
    assert service.name == "node-agent"
    there = NodeWorkload(node="n1", revision=1, spec=spec(), slots=())
    await world.want(there)
    assert (await world.finished(app)).ok


async def test_an_agent_that_never_reached_nats_keeps_the_node_alive(world: World) -> None:
    app, (name,) = await world.live()
    await world.stop()
    await world.engine.vanish(name)
    for path in world.traefik.routes.iterdir():
        path.unlink()

    runtime = world.harness.runtime("node-agent")
    service = node_agent_app.create(runtime, world.engine, None, world.agent_settings())
    host = Host(runtime, service)
    assert service.on_start is not None
    await service.on_start()
    for loop in service.loops:
        host._supervise(loop)
    world.harness.hosts["node-agent"] = host
    (other,) = await world.running(app)
    await world.answers("hello.localhost", other)

    await runtime.bus.connect(with_broker=False)
    assert (await world.stopped(name)).reason == "lost"

    async def told() -> bool:
        return [e.instance for e in await world.started()] == [name, other]

    await eventually(told, what="both starts")


async def test_routes_of_instances_that_have_gone_are_withdrawn(world: World) -> None:
    """Their addresses are given away again: a route that stays could lead to somebody else's instance."""
    _, names = await world.live()
    await world.crash()
    for name in names:
        await world.engine.vanish(name)
    # Nothing takes their place, which would replace the routes anyway.
    world.engine.images.clear()
    assert (await world.get("hello.localhost"))[0] == 502
    await world.start()

    async def leads_nowhere() -> bool:
        return (await world.get("hello.localhost"))[0] in (404, 503)

    await eventually(leads_nowhere, what="the end of the stale route")
