"""What has come to life is kept alive: crashes, hands on the machine, a lost engine, deaf instances."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from contracts.errors import ProviderFailed
from contracts.events import InstanceCrashed, InstanceStopped, RolloutFinished
from contracts.ids import new_id
from contracts.workload import HealthCheck, Slot
from node_agent import outcomes, shelf
from node_agent.crashes import Crashes
from node_agent.desired import Desired
from node_agent.engine import Blueprint, Identity, Instance
from node_agent.launch import Setback

from tests.harness import eventually
from tests.node_agent.conftest import NODE, World, next_release, spec, wanted
from tests.ports.engines import FakeHands, blueprint
from tests.ports.web import Load


async def test_a_crash_costs_no_request_while_another_instance_serves(world: World) -> None:
    app, (one, other) = await world.live(2)
    async with Load(world.traefik.port, "hello.localhost") as load:
        await load.more(100)
        world.engine.restart_seconds = 0.5
        await world.engine.die(one)
        await load.more(100)

        async def alone() -> bool:
            return all([other in (await world.get("hello.localhost"))[1] for _ in range(4)])

        await eventually(alone, what="routes without the one that is down")
        await world.answers("hello.localhost", one)
    # A connection may break in the middle of an answer; the next request finds the other instance.
    assert load.failed <= load.connections
    assert await world.running(app, 2) == sorted((one, other))
    assert await world.harness.events(InstanceStopped) == []


async def test_one_killed_through_the_engine_is_started_again(world: World) -> None:
    app, (name,) = await world.live()
    await world.engine.kill(name)
    assert await world.running(app) == [name]
    await world.answers("hello.localhost", name)
    assert len(await world.started()) == 1


async def test_one_removed_by_hand_is_lost_and_replaced(world: World) -> None:
    app, (name,) = await world.live()
    await world.engine.vanish(name)
    stopped = await world.stopped(name)
    assert (stopped.reason, stopped.started_at) == ("lost", (await world.started())[0].started_at)
    assert stopped.stopped_at > stopped.started_at
    (other,) = await world.running(app)
    assert other != name
    await world.answers("hello.localhost", other)


@pytest.mark.promise("U21")
async def test_one_that_goes_deaf_is_replaced_after_its_failed_checks(world: World) -> None:
    app, (name,) = await world.live()
    await world.engine.deafen(name)
    stopped = await world.stopped(name)
    assert stopped.reason == "unhealthy"
    assert str(stopped.words).startswith("3 checks in a row failed: nothing answers on port 8080")
    (other,) = await world.running(app)
    await world.answers("hello.localhost", other)


async def test_a_deaf_one_stays_until_something_better_is_ready(world: World) -> None:
    app, (name,) = await world.live()
    world.engine.images["app:1"] = "sleep 1000"
    await world.engine.deafen(name)
    # A replacement is tried, does not become ready, and is taken away.
    await world.running(app, 2)
    assert await world.running(app, 1) == [name]
    assert await world.harness.events(InstanceStopped) == []


async def test_one_that_wrote_too_much_is_replaced(world: World) -> None:
    app, (name,) = await world.live()
    world.engine.writes[name] = 65 * 2**20
    service = world.harness.hosts["node-agent"].service
    disks = next(loop for loop in service.loops if loop.name == "disks")
    disks.nudge()
    stopped = await world.stopped(name)
    assert stopped.reason == "unhealthy"
    assert stopped.words == "wrote more than the 64 MB of its plan, or folders too deep to be measured"
    (other,) = await world.running(app)
    assert other != name


async def test_one_that_cannot_be_measured_hides_no_other(world: World) -> None:
    app, names = await world.live(2)
    world.engine.writes.update(dict.fromkeys(names, 65 * 2**20))
    world.engine.fail_next("written", KeyError("GraphDriver"))
    [disks] = [loop for loop in world.harness.hosts["node-agent"].service.loops if loop.name == "disks"]
    await disks.work()
    gone = await world.harness.event(InstanceStopped, lambda e: e.workload == app.id)
    assert gone.reason == "unhealthy"


@pytest.mark.parametrize("own", [False, True], ids=["the engine's", "the agent's too"])
async def test_one_that_has_filled_the_disk_goes_though_nothing_can_be_made_in_its_place(
    world: World, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """`own`: what the agent writes is on the same disk."""
    monkeypatch.setattr("node_agent.rollout._FIRST_REPAIR_PAUSE", 0.2)
    filled: list[str] = []
    create, write = world.engine.create, shelf.write_durably

    def full() -> bool:
        return any(one.identity.instance in filled for one in world.engine.blueprints())

    async def create_with_room(plan: Blueprint) -> Instance:
        if full():
            raise ProviderFailed("no space left on device")
        return await create(plan)

    def write_with_room(path: Path, text: str, drafts: Path) -> None:
        if own and full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text, drafts)

    monkeypatch.setattr(world.engine, "create", create_with_room)
    monkeypatch.setattr(shelf, "write_durably", write_with_room)
    app, (name,) = await world.live()
    filled.append(name)
    world.engine.writes[name] = 65 * 2**20
    [disks] = [loop for loop in world.harness.hosts["node-agent"].service.loops if loop.name == "disks"]
    disks.nudge()
    stopped = await world.stopped(name)
    assert (stopped.reason, "of its plan" in str(stopped.words)) == (
        ("lost", False) if own else ("unhealthy", True)
    )
    (other,) = await world.running(app)
    await world.answers("hello.localhost", other)


async def test_a_replacement_that_fails_is_tried_again_later_and_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.rollout._FIRST_REPAIR_PAUSE", 0.2)
    app, (name,) = await world.live()
    for _ in range(2):
        world.engine.fail_next("start", ProviderFailed("no space left on device"))
    await world.engine.vanish(name)
    (other,) = await world.running(app)
    await world.answers("hello.localhost", other)
    assert world.engine.count("create") == 4


async def test_what_does_not_start_at_its_new_place_is_tried_until_the_cause_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.outcomes._FIRST_PAUSE", 0.3)
    image = "registry.example/app:7"
    app = spec(image=image)
    await world.route(app, "hello.localhost")
    await world.want(wanted(app))
    await world.start()

    async def reasons() -> list[str | None]:
        return [e.reason for e in await world.harness.events(RolloutFinished) if not e.ok]

    async def tried_twice() -> bool:
        return len(await reasons()) >= 2

    await eventually(tried_twice, what="another try")
    # The cause is another one now, and it is told.
    world.engine.registry[image] = "exit 3"

    async def ends() -> bool:
        return "exit code 3" in str((await reasons())[-1])

    await eventually(ends, what="what stands in its way now")
    # An agent that starts does not wait for what another one had to wait for.
    await world.stop()
    monkeypatch.setattr("node_agent.outcomes._FIRST_PAUSE", 300.0)
    world.engine.images[image] = ""
    await world.start()
    come = await world.harness.event(RolloutFinished, lambda e: e.ok)
    assert (come.workload, come.generation, come.running) == (app.id, 1, 1)
    (name,) = await world.running(app)
    await world.answers("hello.localhost", name)
    assert [e.instance for e in await world.started()] == [name]


async def test_what_comes_here_beside_what_serves_is_tried_again_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slots of a node that was lost, on one that has some of its own."""
    monkeypatch.setattr("node_agent.outcomes._FIRST_PAUSE", 0.3)
    app, (name,) = await world.live()
    world.engine.fail_next("create", ProviderFailed("no memory is left"))
    async with Load(world.traefik.port, "hello.localhost", connections=1) as load:
        await world.want(wanted(app, 2, 2))
        refused = await world.harness.event(RolloutFinished, lambda e: not e.ok)
        assert (refused.reason, refused.running) == ("web.2 could not be started: no memory is left", 1)
        assert name in await world.running(app, 2)
    assert load.failed == 0, load.answers


async def test_who_fails_again_waits_longer(tmp_path: Path) -> None:
    app, desired = spec(), Desired(tmp_path, NODE)
    desired.open()
    setback = Setback(Slot(process="web", index=0), "no")
    await desired.accept(f"{NODE}.{app.id}", wanted(app).model_dump_json().encode())
    failure = outcomes.failure(app, [setback])
    waits = [outcomes.pause(await desired.failed(app.id, failure)) for _ in range(8)]
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    # Another generation begins anew.
    later = next_release(app)
    await desired.accept(f"{NODE}.{app.id}", wanted(later, 2).model_dump_json().encode())
    assert await desired.failed(app.id, outcomes.failure(later, [setback])) == 1


async def test_what_no_event_told_of_is_found_by_the_timer(world: World) -> None:
    world.settings["reconcile_seconds"] = 0.3
    app, (name,) = await world.live()
    world.engine.silent = True
    await world.engine.kill(name)
    assert await world.running(app) == [name]
    assert world.engine.reasserted > 1


async def test_the_stream_of_events_is_opened_again(world: World) -> None:
    app, (name,) = await world.live()
    await world.engine.lose()
    await world.engine.kill(name)
    assert await world.running(app) == [name]

    async def opened() -> bool:
        return world.engine.count("events") == 2

    await eventually(opened, what="the stream")


async def test_an_instance_of_an_unknown_workload_is_left_alone(world: World) -> None:
    stranger = await world.engine.create(blueprint(FakeHands()))
    await world.engine.start(stranger.identity.instance)
    await world.live()
    await asyncio.sleep(0.2)
    assert await world.engine.instances(stranger.identity.workload) != ()


async def test_a_half_made_instance_is_taken_over_or_taken_away(world: World) -> None:
    """What an agent that died in the middle of things may have left."""
    app = spec()
    names = [new_id("ins"), new_id("ins")]
    for leftover, name in zip((app, next_release(app, image="app:3")), names, strict=True):
        identity = Identity.of(leftover, wanted(app).slots[0], name, world.now())
        await world.engine.create(Blueprint(identity, str(leftover.image), None, 100_000, app.limits))
    await world.want(wanted(app))
    await world.start()
    assert (await world.finished(app)).ok
    assert await world.running(app) == names[:1]
    assert world.engine.count("create") == 2


async def test_an_address_that_was_lost_leaves_the_routes_before_anything_is_made(world: World) -> None:
    """It may belong to another tenant by the time the replacement is ready."""
    app, (name,) = await world.live()
    (lost,) = await world.engine.instances(app.id)
    seen: list[str] = []
    create = world.engine.create

    async def watched(blueprint: Blueprint) -> Instance:
        seen.append((world.traefik.routes / f"{app.id}.yaml").read_text())
        return await create(blueprint)

    world.engine.create = watched  # type: ignore[method-assign]
    await world.engine.vanish(name)
    assert (await world.stopped(name)).reason == "lost"
    await world.answers("hello.localhost", (await world.running(app))[0])
    assert len(seen) == 1
    assert lost.address not in seen[0]


async def test_who_crashes_again_and_again_is_told_of_in_words(world: World) -> None:
    app, (name,) = await world.live()
    for number in range(1, 6):
        await world.running(app)
        if number < 5:
            await world.engine.die(name, 1)
        else:
            await world.engine.starve(name)
    told = [e.words for e in await crashes(world, 4)]
    assert told[0] == "web.1 crashed (exit code 1) and is started again"
    assert told[1] == "web.1 crashed 2 times in 2 minutes; the last time: exit code 1"
    last = "web.1 crashed 5 times in 2 minutes, next try in 2 s; the last time: killed: out of memory (64 MB)"
    assert told[-1] == last


async def crashes(world: World, number: int) -> list[InstanceCrashed]:
    async def look() -> list[InstanceCrashed] | None:
        found = await world.harness.events(InstanceCrashed)
        return found if len(found) >= number else None

    return await eventually(look, what=f"{number} crashes")


def test_the_longer_a_loop_goes_on_the_longer_it_waits_and_the_less_is_told() -> None:
    crashes, slot = Crashes(), Slot(process="web", index=0)
    told = [n for second in range(40) if (n := crashes.note(slot, float(second))) is not None]
    assert told == [1, 2, 3, 5, 10, 20, 30, 40]
    assert crashes.wait(slot) == 60.0
    # A good while later it begins anew.
    assert crashes.note(slot, 500.0) == 1
    assert crashes.wait(slot) == 0.1


@pytest.mark.promise("U21")
async def test_a_check_by_command_replaces_who_fails_it_three_times(world: World) -> None:
    check = {"kind": "command", "command": ("check",), "interval_seconds": 0.1, "start_seconds": 3}
    world.engine.checks["check"] = "exit 0"
    app, (name,) = await world.live(health=HealthCheck.model_validate(check))
    world.engine.checks["check"] = "echo no database; exit 1"
    world.engine.failing_check_of = name
    stopped = await world.stopped(name)
    assert stopped.reason == "unhealthy"
    assert stopped.words == ("3 checks in a row failed: the check `check` failed (exit code 1): no database")
    (other,) = await world.running(app)
    assert other != name
