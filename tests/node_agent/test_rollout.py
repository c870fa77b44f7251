"""Releases come to life as a whole or not at all, and the old one serves until then."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from contracts.errors import ProviderFailed, Unavailable
from contracts.events import InstanceStarted, InstanceStopped, RolloutFinished
from contracts.workload import Endpoints, NodeWorkload, Process, Slot
from node_agent.engine import Blueprint, Instance

from tests.harness import eventually
from tests.node_agent.conftest import World, next_release, replicas, spec, wanted
from tests.ports.web import Load


async def test_a_first_release_is_started_routed_and_told(world: World) -> None:
    app, (name,) = await world.live()
    finished = await world.finished(app)
    assert (finished.ok, finished.running, finished.deployment) == (True, 1, app.deployment)
    (started,) = await world.started()
    assert (started.instance, started.workload, started.rate) == (name, app.id, app.rate)
    assert await world.get("other.localhost") == (404, "404 page not found\n")


async def test_a_switch_fails_no_request(world: World) -> None:
    app, before = await world.live(count=2)
    world.engine.answer_seconds = 0.005
    async with Load(world.traefik.port, "hello.localhost") as load:
        await load.more(200)
        for revision in range(2, 5):
            app = next_release(app, image=f"app:{revision % 3 + 1}")
            await world.want(wanted(app, revision, 2))
            assert (await world.finished(app)).ok
            await load.more(200)
        await world.running(app, 2)
    assert load.failed == 0, load.answers
    assert load.total > 1000
    images = {body.split()[1] for _, body in load.answers}
    assert images == {"app:1", "app:2", "app:3"}
    for name in before:
        assert (await world.stopped(name)).reason == "replaced"


async def test_a_release_that_never_answers_leaves_the_old_one(world: World) -> None:
    app, (old,) = await world.live()
    world.engine.images["app:deaf"] = "sleep 1000"
    broken = next_release(app, image="app:deaf")
    async with Load(world.traefik.port, "hello.localhost", connections=1) as load:
        await world.want(wanted(broken, 2))
        finished = await world.finished(broken)
        await load.more(20)
    assert load.failed == 0
    assert not finished.ok
    assert finished.reason is not None
    assert "web.1 not ready after 1.5 s: nothing answers on port 8080" in finished.reason
    assert finished.running == 1
    assert any("starting ins_" in line for line in finished.log_tail)
    assert await world.running(app) == [old]
    # It is not tried again for ever, not even by a new start of the agent.
    creations = world.engine.count("create")
    await world.stop()
    await world.start()
    await world.answers("hello.localhost", old)
    await asyncio.sleep(0.3)
    assert world.engine.count("create") == creations
    # A newer generation is.
    mended = next_release(broken, image="app:2")
    await world.want(wanted(mended, 3))
    assert (await world.finished(mended)).ok
    assert await world.running(app) != [old]
    assert [e.ok for e in await world.harness.events(RolloutFinished)] == [True, False, True]


async def test_what_comes_while_an_older_state_is_settled_is_not_told_as_settled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, (old,) = await world.live()
    looking, go_on = asyncio.Event(), asyncio.Event()
    look = world.engine.instances

    async def look_slowly(workload: str | None = None) -> tuple[Instance, ...]:
        looking.set()
        await go_on.wait()
        return await look(workload)

    monkeypatch.setattr(world.engine, "instances", look_slowly)
    await world.route(app, "another.localhost")
    await looking.wait()
    world.engine.images["app:deaf"] = "sleep 1000"
    broken = next_release(app, image="app:deaf")
    await world.want(wanted(broken, 2))
    await asyncio.sleep(0.3)
    go_on.set()
    assert not (await world.finished(broken)).ok
    assert await world.running(app) == [old]


async def test_a_release_that_ends_at_once_says_with_what(world: World) -> None:
    world.engine.images["app:ends"] = "exit 3"
    app = spec(image="app:ends")
    await world.want(wanted(app))
    await world.start()
    finished = await world.finished(app)
    assert not finished.ok
    assert finished.reason == "web.1 ended 3 times before it was ready, the last time: exit code 3"
    assert finished.log_tail[-1] == "ending with 3"
    await world.running(app, 0)
    assert await world.started() == []


async def test_one_that_never_stops_to_speak_is_removed_all_the_same(world: World) -> None:
    world.engine.images["app:talks"] = "talk"
    app = spec(image="app:talks")
    await world.want(wanted(app))
    await world.start()
    assert not (await world.finished(app)).ok
    await world.running(app, 0)


async def test_what_leaves_is_stopped_whatever_fails(world: World) -> None:
    app, (name,) = await world.live()
    world.engine.fail_next("stop", ValueError("nobody has thought of this"))
    await world.want(wanted(app.model_copy(update={"state": "stopped"}), 2))
    assert (await world.stopped(name)).reason == "stopped"
    await world.running(app, 0)


async def test_one_whose_connections_cannot_be_seen_is_stopped_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has as many files open as it may, reads no table of the kernel's."""
    app, (old,) = await world.live()
    monkeypatch.setattr("node_agent.departures._CONNECTIONS", Path("/nowhere"))
    await world.want(wanted(next_release(app, image="app:2"), 2))
    assert (await world.stopped(old)).reason == "replaced"


async def test_one_replica_that_fails_fails_the_release(world: World) -> None:
    app, before = await world.live(count=2)
    new = next_release(app, image="app:2")
    world.engine.fail_next("start", ProviderFailed("no such file: serve"))
    await world.want(wanted(new, 2, 2))
    finished = await world.finished(new)
    assert not finished.ok
    assert "could not be started: no such file: serve" in str(finished.reason)
    assert await world.running(app, 2) == before
    assert len(await world.started()) == 2


async def test_an_image_that_cannot_be_pulled_is_said(world: World) -> None:
    app = spec(image="registry.example/app:7")
    await world.want(wanted(app))
    await world.start()
    finished = await world.finished(app)
    assert finished.reason == (
        "web.1 could not be started: image registry.example/app:7 could not be pulled: not found"
    )
    assert world.engine.count("pull") == 3


async def test_an_image_is_pulled_once_for_all_replicas(world: World) -> None:
    world.engine.registry["registry.example/app:7"] = ""
    app = spec(image="registry.example/app:7")
    await world.want(wanted(app, count=4))
    await world.start()
    assert (await world.finished(app)).ok
    assert world.engine.count("pull") == 1


@pytest.mark.promise("R17.5")
async def test_scaling_up_and_down(world: World) -> None:
    app, (first,) = await world.live()
    three = replicas(app, 3)
    await world.want(wanted(three, 2, 3))
    assert (await world.finished(three)).running == 3
    names = await world.running(app, 3)
    seen = set()
    for _ in range(9):
        seen.add((await world.get("hello.localhost"))[1].split()[0])
    assert seen == set(names)
    one = replicas(three, 1)
    async with Load(world.traefik.port, "hello.localhost") as load:
        await load.more(50)
        await world.want(wanted(one, 3, 1))
        assert await world.running(app, 1) == [first]
        await load.more(50)
    assert load.failed == 0
    assert {(await world.stopped(name)).reason for name in names[1:]} == {"stopped"}


async def test_stop_and_start_again(world: World) -> None:
    app, (name,) = await world.live()
    off = app.model_copy(update={"state": "stopped", "generation": 2})
    await world.want(wanted(off, 2))
    assert (await world.stopped(name)).reason == "stopped"
    await world.running(app, 0)
    assert (await world.finished(off)).running == 0
    assert (await world.get("hello.localhost"))[0] == 503
    again = app.model_copy(update={"generation": 3})
    await world.want(wanted(again, 3))
    (other,) = await world.running(app)
    assert other != name
    await world.answers("hello.localhost", other)


async def test_a_deleted_workload_leaves_nothing(world: World) -> None:
    app, (name,) = await world.live()
    gone = app.model_copy(update={"state": "deleted", "generation": 2})
    await world.want(wanted(gone, 2))
    stopped = await world.stopped(name)
    assert (stopped.reason, stopped.exit_code) == ("deleted", 0)
    await world.running(app, 0)
    assert (await world.get("hello.localhost"))[0] == 404
    assert not list(world.traefik.routes.glob(f"{app.id}*"))

    async def told() -> bool:
        return await world.bus.bucket("endpoints").get(f"{app.id}.local") is None

    await eventually(told, what="no endpoints")


async def test_slots_given_to_another_node_are_moved(world: World) -> None:
    app, (name,) = await world.live()
    away = wanted(app, 2).model_copy(update={"slots": ()})
    await world.want(away)
    assert (await world.stopped(name)).reason == "moved"


async def test_a_newer_release_overtakes_one_that_still_starts(world: World) -> None:
    app, _ = await world.live()
    world.engine.images["app:deaf"] = "sleep 1000"
    stuck = next_release(app, image="app:deaf")
    stuck = stuck.model_copy(update={"health": stuck.health.model_copy(update={"start_seconds": 60})})
    await world.want(wanted(stuck, 2))
    await world.running(app, 2)
    newer = next_release(stuck, image="app:3")
    await world.want(wanted(newer, 3))
    assert (await world.finished(newer)).ok
    (name,) = await world.running(app)
    await world.answers("hello.localhost", name)
    assert [e.generation for e in await world.harness.events(RolloutFinished)] == [1, 3]


async def test_a_worker_is_ready_when_it_keeps_running_and_is_not_routed(world: World) -> None:
    app = spec(processes={"web": Process(), "worker": Process(command="work")})
    both = (Slot(process="web", index=0), Slot(process="worker", index=0))
    await world.route(app, "hello.localhost")
    await world.want(NodeWorkload(node="local", revision=1, spec=app, slots=both))
    await world.start()
    assert (await world.finished(app)).running == 2
    answers = {(await world.get("hello.localhost"))[1].split()[0] for _ in range(4)}
    web = {e.instance for e in await world.started() if e.slot.process == "web"}
    assert answers == web
    ending = next_release(app, processes={"web": Process(), "worker": Process(command="exit 4")})
    await world.want(NodeWorkload(node="local", revision=2, spec=ending, slots=both))
    assert "worker.1 ended 3 times" in str((await world.finished(ending)).reason)


async def test_endpoints_are_told(world: World) -> None:
    app, _ = await world.live()
    (instance,) = await world.engine.instances(app.id)

    async def told() -> Endpoints | None:
        entry = await world.bus.bucket("endpoints").get(f"{app.id}.local")
        said = None if entry is None else Endpoints.model_validate_json(entry.value)
        return said if said is not None and said.addresses else None

    assert (await eventually(told, what="endpoints")).addresses == (f"{instance.address}:8080",)


async def test_workloads_do_not_wait_for_each_other(world: World) -> None:
    world.engine.images["app:deaf"] = "sleep 1000"
    slow = spec(image="app:deaf")
    slow = slow.model_copy(update={"health": slow.health.model_copy(update={"start_seconds": 60})})
    await world.want(wanted(slow))
    await world.start()
    await world.running(slow)
    quick = spec()
    await world.want(wanted(quick))
    assert (await world.finished(quick)).ok


async def test_an_engine_that_is_away_for_a_while_holds_up_and_fails_nothing(world: World) -> None:
    app = spec()
    world.engine.fail_next("create", Unavailable("the container engine does not answer"))
    await world.want(wanted(app))
    await world.start()
    assert (await world.finished(app)).ok
    assert len(await world.harness.events(InstanceStarted)) == 1
    assert await world.harness.events(InstanceStopped) == []


async def test_many_replicas_are_replaced_a_few_at_a_time(world: World) -> None:
    world.settings["rollout_batch"] = 2
    app, before = await world.live(count=6)
    most = 0
    create = world.engine.create

    async def count(blueprint: Blueprint) -> Instance:
        nonlocal most
        most = max(most, len(await world.engine.instances(app.id)) + 1)
        return await create(blueprint)

    world.engine.create = count  # type: ignore[method-assign]
    new = next_release(app, image="app:2")
    async with Load(world.traefik.port, "hello.localhost") as load:
        await load.more(50)
        await world.want(wanted(new, 2, 6))
        assert (await world.finished(new)).ok
        await world.running(new, 6)
        await load.more(50)
    assert load.failed == 0, load.answers
    assert most == 8
    assert {(await world.stopped(name)).reason for name in before} == {"replaced"}


@pytest.mark.promise("P11")
async def test_a_batch_that_fails_takes_the_ones_before_it_back(world: World) -> None:
    world.settings["rollout_batch"] = 2
    app, before = await world.live(count=6)
    made = 0
    create = world.engine.create

    async def third_batch_is_deaf(blueprint: Blueprint) -> Instance:
        nonlocal made
        if blueprint.image == "app:2":
            made += 1
            if made > 4:
                blueprint = replace(blueprint, command="sleep 1000")
        return await create(blueprint)

    world.engine.create = third_batch_is_deaf  # type: ignore[method-assign]
    broken = next_release(app, image="app:2")
    async with Load(world.traefik.port, "hello.localhost") as load:
        await world.want(wanted(broken, 2, 6))
        finished = await world.finished(broken)

        async def only_old() -> bool:
            found = await world.engine.instances(app.id)
            return [i.identity.fingerprint for i in found] == [app.fingerprint()] * 6

        await eventually(only_old, what="the old release, whole")
        await load.more(20)
    assert load.failed == 0, load.answers
    assert not finished.ok
    assert finished.running == 6
    # Two never left; four were raised again.
    assert len(set(before) & set(await world.running(app, 6))) == 2
