"""What every container engine keeps to: the same suite on the one in memory and on the real Docker Engine."""

import asyncio
import time
from dataclasses import replace

import pytest
from contracts.errors import NotFound, ProviderFailed, Unavailable
from contracts.ids import new_id
from contracts.lines import Line
from contracts.workload import HealthCheck, Slot
from node_agent.engine import ContainerEngine, Ending, EngineEvent, Instance, Session
from node_agent.health import probe

from tests.harness import eventually
from tests.ports.engines import DockerHands, Hands, blueprint, docker_engine
from tests.ports.fake_engine import FakeEngine


async def run(hands: Hands, **changes: object) -> Instance:
    instance = await hands.engine.create(blueprint(hands, **changes))
    await hands.engine.start(instance.identity.instance)
    return instance


async def answers(instance: Instance, seconds: float = 30) -> None:
    identity = instance.identity

    async def look() -> bool:
        return await probe(identity.health, instance.address, identity.port) is None

    await eventually(look, seconds=seconds, what=f"an answer of {identity.instance}")


async def becomes(engine: ContainerEngine, instance: Instance, *states: str) -> Instance:
    async def look() -> Instance | None:
        found = await engine.instances(instance.identity.workload)
        return next((one for one in found if one.state in states), None)

    return await eventually(look, what=f"state {states}")


async def test_it_says_what_it_is(hands: Hands) -> None:
    info = await hands.engine.info()
    assert info.version
    assert info.cpu_millis >= 1000
    assert info.memory_mb > 256


async def test_a_created_instance_is_known_by_its_whole_identity_and_does_not_run(hands: Hands) -> None:
    plan = blueprint(hands, slot=Slot(process="web", index=2), health=HealthCheck(timeout_seconds=0.2))
    made = await hands.engine.create(plan)
    assert made.identity == plan.identity
    assert await hands.engine.instances() == (made,)
    assert made.state == "created"
    assert await probe(plan.identity.health, made.address, plan.identity.port) is not None


async def test_an_identity_without_a_deployment_comes_back_without_one(hands: Hands) -> None:
    plan = blueprint(hands)
    plan = replace(plan, identity=replace(plan.identity, deployment=None))
    await hands.engine.create(plan)
    (found,) = await hands.engine.instances()
    assert found.identity == plan.identity


async def test_a_started_instance_answers_at_its_address(hands: Hands) -> None:
    instance = await run(hands)
    await answers(instance)
    (found,) = await hands.engine.instances()
    assert found == replace(instance, state="running")
    # Starting what runs changes nothing.
    await hands.engine.start(instance.identity.instance)


async def test_instances_are_found_by_workload(hands: Hands) -> None:
    one, other = await hands.engine.create(blueprint(hands)), await hands.engine.create(blueprint(hands))
    assert await hands.engine.instances(one.identity.workload) == (one,)
    assert {i.identity.instance for i in await hands.engine.instances()} == {
        one.identity.instance,
        other.identity.instance,
    }
    assert await hands.engine.instances(new_id("app")) == ()


async def test_instances_of_one_organization_get_addresses_of_their_own(hands: Hands) -> None:
    organization = new_id("org")
    made = [await hands.engine.create(blueprint(hands, organization=organization)) for _ in range(3)]
    assert len({instance.address for instance in made}) == 3


async def test_a_stopped_instance_stays_down_until_it_is_started(hands: Hands) -> None:
    instance = await run(hands)
    await answers(instance)
    assert await hands.engine.stop(instance.identity.instance, 5) == 0
    await asyncio.sleep(0.3)
    (found,) = await hands.engine.instances()
    assert found.state == "exited"
    await hands.engine.start(instance.identity.instance)
    await answers(instance)


async def test_a_removed_instance_is_gone_and_removing_it_again_is_nothing(hands: Hands) -> None:
    instance = await run(hands)
    for _ in range(2):
        await hands.engine.remove(instance.identity.instance)
        assert await hands.engine.instances() == ()
    assert await hands.engine.stop(instance.identity.instance, 1) is None
    with pytest.raises(NotFound):
        await hands.engine.start(instance.identity.instance)
    with pytest.raises(NotFound):
        await hands.engine.log_tail(instance.identity.instance, 5)


async def test_an_instance_that_crashes_is_started_again_by_the_engine_at_the_same_address(
    hands: Hands,
) -> None:
    instance = await run(hands)
    await answers(instance)
    await hands.crash(instance.identity.instance)
    await becomes(hands.engine, instance, "running")
    await answers(instance)
    (found,) = await hands.engine.instances()
    assert found.address == instance.address


async def test_an_instance_killed_by_hand_can_be_started_again_at_the_same_address(hands: Hands) -> None:
    instance = await run(hands)
    await answers(instance)
    await hands.kill(instance.identity.instance)
    exited = await becomes(hands.engine, instance, "exited")
    assert (exited.exit_code, exited.address) == (137, instance.address)
    await hands.engine.start(instance.identity.instance)
    await answers(instance)


async def test_one_that_ends_at_once_is_tried_again_and_says_with_what_it_ended(hands: Hands) -> None:
    instance = await run(hands, command="exit 3")

    async def look() -> bool:
        (found,) = await hands.engine.instances()
        return found.state == "restarting" and found.exit_code == 3

    await eventually(look, what="a restart")
    assert await hands.engine.stop(instance.identity.instance, 1) == 3


async def test_events_tell_of_every_start_and_end(hands: Hands) -> None:
    seen: list[EngineEvent | None] = []

    async def listen() -> None:
        async for event in hands.engine.events():
            seen.append(event)

    listener = asyncio.create_task(listen())
    try:

        async def heard(kind: str) -> EngineEvent:
            async def look() -> EngineEvent | None:
                return next((event for event in seen if event is not None and event.kind == kind), None)

            return await eventually(look, what=f"event {kind}")

        async def open_stream() -> bool:
            return seen == [None]

        await eventually(open_stream, what="the stream")
        instance = await run(hands)
        started = await heard("started")
        assert (started.instance, started.workload) == (
            instance.identity.instance,
            instance.identity.workload,
        )
        await answers(instance)
        await hands.kill(instance.identity.instance)
        assert (await heard("died")).exit_code == 137
        await hands.remove(instance.identity.instance)
        assert (await heard("removed")).instance == instance.identity.instance
    finally:
        listener.cancel()
        await asyncio.gather(listener, return_exceptions=True)


async def test_the_tail_of_the_log_is_its_last_lines(hands: Hands) -> None:
    instance = await run(hands)
    await answers(instance)
    assert await hands.engine.log_tail(instance.identity.instance, 5) != ()
    assert len(await hands.engine.log_tail(instance.identity.instance, 1)) == 1


async def test_the_tail_of_the_log_is_text_whatever_was_written(docker: DockerHands) -> None:
    instance = await run(docker, command="printf 'a\\0b\\n'; exec sleep 60")

    async def said() -> tuple[str, ...]:
        return await docker.engine.log_tail(instance.identity.instance, 5)

    assert await eventually(said, what="its line") == ("a\ufffdb",)
    await docker.engine.remove(instance.identity.instance)


async def test_what_an_instance_says_is_read_line_by_line_from_any_moment_on(hands: Hands) -> None:
    instance = await hands.engine.create(blueprint(hands))
    name = instance.identity.instance
    await hands.engine.start(name)
    reader = await hands.engine.lines(name, 0)
    found: list[Line] = []

    async def said() -> bool:
        found.extend(await asyncio.to_thread(reader.read, 1024 * 1024))
        return bool(found)

    await eventually(said, what="its first line")
    assert found[0].stream in ("stdout", "stderr")
    assert abs(found[0].at / 1e9 - time.time()) < 60
    assert await asyncio.to_thread(reader.read, 1024 * 1024) == []
    # From the last of them on there is nothing yet.
    later = await hands.engine.lines(name, found[-1].at)
    assert await asyncio.to_thread(later.read, 1024 * 1024) == []
    # It says the same again when it is started again; whoever reads reads on, also when it is removed.
    await hands.engine.stop(name, 1)
    await hands.engine.start(name)
    count = len(found)

    async def said_again() -> bool:
        found.extend(await asyncio.to_thread(reader.read, 1024 * 1024))
        return found[count:] != [] and found[-1].text == found[count - 1].text

    await eventually(said_again, what="its first line again")
    await hands.engine.remove(name)
    assert await asyncio.to_thread(reader.read, 1024 * 1024) == []
    reader.close()
    later.close()
    with pytest.raises(NotFound):
        await hands.engine.lines(name, 0)


async def test_usage_counts_what_it_takes(hands: Hands) -> None:
    instance = await run(hands)
    await answers(instance)
    usage = await hands.engine.usage(instance.identity.instance)
    assert usage.cpu_seconds > 0
    assert 0 < usage.memory_bytes < 64 * 2**20
    assert await hands.engine.written(instance.identity.instance, 2**30) >= 0
    before = usage.cpu_seconds
    assert (await hands.engine.usage(instance.identity.instance)).cpu_seconds >= before


async def everything(session: Session) -> bytes:
    """Of what it says, to its end."""
    said = b""
    async with asyncio.timeout(20):
        while (chunk := await session.read()) is not None:
            said += chunk.data
    await session.close()
    return said


async def test_what_runs_for_a_job_runs_once_and_says_what_it_said_and_how_it_ended(hands: Hands) -> None:
    instance = await run(hands, job=new_id("job"), command="echo one; sleep 0.3; echo two; exit 3")
    name = instance.identity.instance
    assert await hands.engine.ending(name) is None
    assert await everything(await hands.engine.output(name)) == b"one\ntwo\n"
    ending = await hands.engine.ending(name)
    assert ending == Ending(3, out_of_memory=False)
    await asyncio.sleep(0.3)
    assert await hands.engine.instances() == ()
    [found] = await hands.engine.jobs()
    assert (found.identity, found.state) == (instance.identity, "exited")
    # What it said can be asked for as long as it is there.
    assert await everything(await hands.engine.output(name)) == b"one\ntwo\n"


async def test_a_terminal_is_talked_to_from_the_first_moment(hands: Hands) -> None:
    plan = blueprint(hands, job=new_id("job"), command="cat; exit 5")
    made = await hands.engine.create(replace(plan, terminal=True))
    name = made.identity.instance
    session = await hands.engine.attach(name)
    await hands.engine.start(name)
    await session.resize(40, 100)
    await session.write(b"typed\n")
    said = b""
    async with asyncio.timeout(30):
        while b"typed" not in said:
            chunk = await session.read()
            assert chunk is not None
            said += chunk.data
    # What a keyboard sends for the end of input; a pipe has another way.
    await session.write(b"\x04")
    await session.end_input()
    await everything(session)

    async def ended() -> Ending | None:
        return await hands.engine.ending(name)

    assert (await eventually(ended, what="its end")).exit_code == 5


async def test_another_process_runs_inside_an_instance(hands: Hands) -> None:
    instance = await run(hands)
    await answers(instance)
    name = instance.identity.instance
    session = await hands.engine.execute(name, ("/bin/sh", "-c", "exit 4"), {}, terminal=False)
    await session.end_input()
    await everything(session)
    assert await session.exit_code() == 4
    echoing = await hands.engine.execute(name, ("cat",), {}, terminal=False)
    await echoing.write(b"a line\n")
    await echoing.end_input()
    assert await everything(echoing) == b"a line\n"
    assert await echoing.exit_code() == 0
    await hands.engine.stop(name, 1)
    with pytest.raises((ProviderFailed, NotFound)):
        await hands.engine.execute(name, ("cat",), {}, terminal=False)


async def test_a_process_that_does_not_read_is_let_go_of_all_the_same(hands: Hands) -> None:
    instance = await run(hands)
    await answers(instance)
    command = ("/bin/sh", "-c", "sleep 1000")
    session = await hands.engine.execute(instance.identity.instance, command, {}, terminal=False)

    async def tell() -> None:
        while True:
            await session.write(b"x" * 64 * 1024)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await tell()
    async with asyncio.timeout(5):
        await session.close()


async def test_images(hands: Hands) -> None:
    assert await hands.engine.image_present(hands.image)
    missing = "berth-test/no-such-image:1"
    assert not await hands.engine.image_present(missing)
    with pytest.raises(NotFound):
        await hands.engine.create(blueprint(hands, image=missing))
    assert await hands.engine.instances() == ()


async def test_an_image_is_pulled_with_the_right_password_only(hands: Hands) -> None:
    with pytest.raises(ProviderFailed, match="could not be pulled"):
        await hands.engine.pull(hands.pullable)
    assert not await hands.engine.image_present(hands.pullable)
    await hands.engine.pull(hands.pullable, hands.credentials)
    assert await hands.engine.image_present(hands.pullable)


@pytest.mark.parametrize("kind", ["fake", "docker"])
async def test_an_engine_that_is_away_is_unavailable(kind: str) -> None:
    engine: ContainerEngine
    if kind == "fake":
        fake = FakeEngine()
        fake.running = False
        engine = fake
    else:
        engine = docker_engine()
        engine._url = "tcp://127.0.0.1:1"
    with pytest.raises(Unavailable):
        await engine.instances()
    with pytest.raises(Unavailable):
        async for _ in engine.events():
            pass
    await engine.close()
