"""The whole agent on the real engine: containers, Traefik, NATS, and requests all the while."""

import asyncio
import io
import os
import re
import signal

import pytest
from contracts.workload import HealthCheck, Process

from tests.harness import eventually
from tests.node_agent.conftest import World, next_release, spec, wanted
from tests.node_agent.test_jobs import ended, give, job
from tests.ports.docker_image import IMAGE
from tests.ports.engines import DockerHands, blueprint
from tests.ports.web import Load

HEALTH = HealthCheck(kind="http", path="/", interval_seconds=0.5, timeout_seconds=2, start_seconds=20)


@pytest.fixture(autouse=True)
def kept_open(docker: DockerHands, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that stops lets go of its engine; here the next one is given the same."""

    async def close() -> None: ...

    monkeypatch.setattr(docker.engine, "close", close)


@pytest.mark.promise("P11")
async def test_a_switch_between_real_containers_fails_no_request(real: World) -> None:
    app = spec(image=IMAGE, health=HEALTH)
    await real.route(app, "hello.localhost")
    await real.want(wanted(app, count=2))
    await real.start()
    assert (await real.finished(app)).ok
    await real.answers("hello.localhost", "web-1 8080")
    async with Load(real.traefik.port, "hello.localhost", connections=4) as load:
        await load.more(300)
        for revision, port in ((2, 8081), (3, 8082)):
            app = next_release(app, port=port)
            await real.want(wanted(app, revision, 2))
            assert (await real.finished(app)).ok
            await load.more(300)
        await real.running(app, 2)
        await load.more(100)
    assert load.failed == 0, load.answers
    ports = {body.split()[1] for _, body in load.answers}
    assert ports == {"8080", "8081", "8082"}


async def test_a_container_comes_back_while_nobody_looks(real: World, docker: DockerHands) -> None:
    app = spec(image=IMAGE, health=HEALTH)
    await real.route(app, "hello.localhost")
    await real.want(wanted(app))
    await real.start()
    (name,) = await real.running(app)
    assert (await real.finished(app)).ok
    await real.stop()
    before = await asyncio.to_thread(docker.inspect, name)
    os.kill(before["State"]["Pid"], signal.SIGKILL)
    await real.answers("hello.localhost", "web-1 8080")
    after = await asyncio.to_thread(docker.inspect, name)
    assert after["RestartCount"] == before["RestartCount"] + 1
    await real.start()
    assert await real.running(app) == [name]


async def test_what_a_failed_release_printed_is_told(real: World) -> None:
    app = spec(image=IMAGE, health=HEALTH)
    await real.route(app, "hello.localhost")
    await real.want(wanted(app))
    await real.start()
    assert (await real.finished(app)).ok
    shouting = {"web": Process(command="echo 'no such table: users' >&2; exit 3")}
    broken = next_release(app, processes=shouting)
    await real.want(wanted(broken, 2))
    finished = await real.finished(broken)
    told = r"web\.1 ended [3-9] times before it was ready, the last time: exit code 3"
    assert re.fullmatch(told, str(finished.reason))
    assert finished.log_tail[-1] == "no such table: users"
    await real.answers("hello.localhost", "web-1 8080")
    missing = next_release(broken, processes={"web": Process()}, image="127.0.0.1:1/none:1")
    await real.want(wanted(missing, 3))
    assert "image 127.0.0.1:1/none:1 could not be pulled" in str((await real.finished(missing)).reason)
    await real.running(app)


# Whoever is asked, and not killed, has the last word.
_LAST_WORD = "$SIG{TERM} = sub { sleep 1; syswrite STDOUT, qq(the last word\\n); exit 7 }; sleep 60; sleep 60"
_PERL = f"perl -e '{_LAST_WORD}'"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (_PERL, 7),
        (f"cd /tmp && MODE=quick {_PERL}", 7),
        (f"{_PERL}; echo and goes on", 7),
        # The image's own, in the shell's form.
        (None, 7),
    ],
)
async def test_who_is_asked_to_stop_has_time_for_it(
    docker: DockerHands, command: str | None, code: int
) -> None:
    """Whatever the shell has to do with the command."""
    image = docker.image
    if command is None:
        image = image.replace("answer", "last-word")
        dockerfile = io.BytesIO(f"FROM {docker.image}\nCMD {_PERL}\n".encode())
        assert [*docker.client.build(fileobj=dockerfile, tag=image, rm=True)]
    made = await docker.engine.create(blueprint(docker, image=image, command=command))
    name = made.identity.instance
    await docker.engine.start(name)
    await asyncio.sleep(0.5)
    assert await docker.engine.stop(name, 10) == code
    assert await docker.engine.log_tail(name, 10) == ("the last word",)
    await docker.engine.remove(name)
    if command is None:
        docker.client.remove_image(image, force=True)


async def test_a_job_in_a_real_container(real: World, docker: DockerHands) -> None:
    await real.start()
    echo = "echo $DYNO on $PORT; echo oops >&2; id -u"
    first = await give(real, job(real, f"{echo}; exit 4", of={"image": IMAGE}))
    end = await ended(real, first, seconds=20)
    assert (end.outcome, end.exit_code) == ("failed", 4)
    assert sorted(line.text for line in end.tail) == ["100000", "oops", "run.1 on 8080"]
    assert {line.stream for line in end.tail} == {"stdout", "stderr"}
    # More than its memory: the kernel ends it, and the customer reads so.
    eats = "perl -e 'my $x = \"x\" x (200*1024*1024); sleep 5'"
    greedy = await give(real, job(real, eats, of={"image": IMAGE}))
    end = await ended(real, greedy, seconds=20)
    assert (end.outcome, end.words) == ("failed", "killed: out of memory (64 MB)")
    missing = await give(real, job(real, "no-such-command", of={"image": IMAGE}))
    assert (await ended(real, missing, seconds=20)).words == "exit code 127: command not found"

    async def clean() -> bool:
        return not await docker.engine.jobs()

    await eventually(clean, what="the end of the containers")


async def test_registries_that_do_not_answer_stop_pulls_and_nothing_else(docker: DockerHands) -> None:
    asked, released = asyncio.Event(), asyncio.Event()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await released.wait()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    pulls = [asyncio.create_task(docker.engine.pull(f"{host}/app/{n}:1")) for n in range(12)]
    try:
        async with asyncio.timeout(20):
            await asked.wait()
        # All that can be under way are, by now.
        await asyncio.sleep(0.5)
        async with asyncio.timeout(5):
            await docker.engine.instances()
    finally:
        server.close()
        released.set()
        await asyncio.gather(*pulls, return_exceptions=True)
