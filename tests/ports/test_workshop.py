"""What every workshop does, real or fake, what becomes of what it made, and how the real one confines."""

import asyncio
import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import pytest
from builder import image_archive
from builder.docker_workshop import CPU_WEIGHT
from builder.engine_api import Refused
from builder.image_builder import FoundImage, Setup, StepFailed

from tests.harness import eventually
from tests.ports.image_builders import (
    BASE,
    DockerHands,
    FakeHands,
    Hands,
    Said,
    docker_builder,
    docker_hands,
    new_order,
)
from tests.ports.test_image_builder import container_of

PREFIX = "bldshop"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
async def docker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DockerHands]:
    async with docker_hands(tmp_path_factory.mktemp("git"), PREFIX) as hands:
        yield hands


@pytest.fixture(params=["fake", "docker"])
async def hands(request: pytest.FixtureRequest, docker: DockerHands) -> Hands:
    return docker if request.param == "docker" else FakeHands()


async def setup(hands: Hands, *steps: str, cache: str | None = None) -> Setup:
    base = await hands.builder.find(new_order(), BASE, Said())
    return Setup(base, ("/bin/sh", "-c", "; ".join(steps)), 4321, 4321, {"GREETING": "hello"}, cache)


def files(**contents: str) -> io.BytesIO:
    """Folders and files of the user who works; `__` stands for a slash."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, text in contents.items():
            path = name.replace("__", "/")
            for folder in (path.rpartition("/")[0],):
                info = tarfile.TarInfo(folder)
                info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o755, 4321, 4321
                tar.addfile(info)
            info = tarfile.TarInfo(path)
            info.size, info.uid, info.gid = len(text.encode()), 4321, 4321
            tar.addfile(info, io.BytesIO(text.encode()))
    return made


# --- any workshop ------------------------------------------------------------------------------------------


async def test_works_on_what_was_put_and_gives_it_back(hands: Hands) -> None:
    said, into = Said(), io.BytesIO()
    wanted = await setup(hands, "echo one", "echo two >&2", "cp /work/in /work/out", "echo three")
    async with hands.builder.workshop(new_order(), wanted) as shop:
        await shop.put(files(work__in="content"))
        assert await shop.work(said) == 0
        assert not await shop.take("/work/nothing", io.BytesIO(), MIB)
        assert await shop.take("/work", into, MIB)
    assert (said.of("stdout"), said.of("stderr")) == (["one", "three"], ["two"])
    with tarfile.open(fileobj=into) as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        assert set(found) == {"work/in", "work/out"}
        out = found["work/out"]
        assert out is not None
        assert out.read() == b"content"


async def test_one_file_is_taken_alone(hands: Hands) -> None:
    into = io.BytesIO()
    async with hands.builder.workshop(new_order(), await setup(hands, "cp /work/in /work/out")) as shop:
        await shop.put(files(work__in="content"))
        await shop.work(Said())
        assert await shop.take("/work/out", into, MIB)
    assert image_archive.only_file(into, "out").read() == b"content"


async def test_tells_the_exit_code(hands: Hands) -> None:
    async with hands.builder.workshop(new_order(), await setup(hands, "exit 7")) as shop:
        assert await shop.work(Said()) == 7


async def test_too_much_is_not_taken(hands: Hands) -> None:
    async with hands.builder.workshop(new_order(), await setup(hands, "echo x")) as shop:
        await shop.put(files(work__in="x" * 3 * MIB))
        await shop.work(Said())
        with pytest.raises(StepFailed, match="larger than 2 MiB"):
            await shop.take("/work", io.BytesIO(), 2 * MIB)


async def test_a_cache_is_there_again_for_its_app_alone(hands: Hands) -> None:
    mine, yours, later = new_order(cache="app_a.0"), new_order(cache="app_b.0"), new_order(cache="app_a.1")
    keeps = await setup(hands, "cp /work/in /cache/kept", cache="a")
    finds = await setup(hands, "cp /cache/kept /work/found", cache="a")
    async with hands.builder.workshop(mine, keeps) as shop:
        await shop.put(files(work__in="content", cache__begun=""))
        assert await shop.work(Said()) == 0
    other = await setup(hands, "cp /cache/kept /work/found", cache="b")
    cases = ((mine, finds, 0), (yours, finds, 1), (later, finds, 1), (mine, other, 1))
    for order, wanted, code in (*cases, (new_order(), finds, 1)):
        async with hands.builder.workshop(order, wanted) as shop:
            await shop.put(files(work__in="", cache__begun=""))
            assert await shop.work(Said()) == code


async def test_an_image_that_is_not_there(hands: Hands) -> None:
    with pytest.raises(StepFailed):
        await hands.builder.find(new_order(), "berth/nothing:1", Said())


async def test_a_cancelled_one_is_thrown_away(hands: Hands) -> None:
    said, wanted = Said(), await setup(hands, "echo begun", "sleep 600")

    async def working() -> None:
        async with hands.builder.workshop(new_order(), wanted) as shop:
            await shop.work(said)

    task = asyncio.create_task(working())

    async def begun() -> bool:
        return "begun" in said.of("stdout")

    await eventually(begun, what="the work")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- the Docker Engine -------------------------------------------------------------------------------------


async def test_it_is_confined_and_gone_afterwards(docker: DockerHands) -> None:
    said = Said()
    words = (
        "id; echo $GREETING; touch /etc/x; cat /proc/self/status | grep -E 'CapEff|NoNewPrivs'; ls /var/run"
    )
    wanted = await setup(docker, words, "sleep 600", cache="a")
    # More CPU than the machine has is no reason to build nothing.
    cores = (os.cpu_count() or 1) + 1
    order = dataclasses.replace(new_order(cache="app_c.0"), cpu_millis=cores * 1000)

    async def working() -> None:
        async with docker.builder.workshop(order, wanted) as shop:
            await shop.work(said)

    task = asyncio.create_task(working())
    try:
        found = await eventually(lambda: container_of(docker), what="the container")
        container: dict[str, Any] = await docker.api.call("GET", f"/containers/{found['Id']}/json")

        async def seen() -> bool:
            return len(said.of("stdout")) >= 4

        await eventually(seen, what="its words")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    host = container["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 512 * MIB
    assert host["Ulimits"] == [{"Name": "fsize", "Soft": 8192 * MIB, "Hard": 8192 * MIB}]
    assert (host["CpuPeriod"], host["CpuQuota"]) == (100_000, cores * 100_000)
    assert (host["CpuShares"], host["PidsLimit"]) == (CPU_WEIGHT, 200)
    assert (host["NetworkMode"], host["Privileged"], host["Binds"]) == (docker.builder.network, False, None)
    assert [mount["Type"] for mount in host["Mounts"]] == ["volume"]
    assert container["Config"]["Labels"]["berth.build"] == order.build
    identity, greeting, capabilities, no_new = said.of("stdout")[:4]
    assert identity.startswith("uid=4321 gid=4321 groups=4321")
    assert greeting == "hello"
    assert (capabilities.split(), no_new.split()) == (
        ["CapEff:", "0000000000000000"],
        ["NoNewPrivs:", "1"],
    )
    assert any("Permission denied" in line for line in said.of("stderr"))
    assert not any("sock" in line for line in said.of("stdout"))
    with pytest.raises(Refused, match="No such container"):
        await docker.api.call("GET", f"/containers/{found['Id']}/json")


async def test_too_much_memory_is_told_as_a_step_would(docker: DockerHands) -> None:
    wanted = await setup(docker, "perl -e '$x = \"a\" x (900 * 1024 * 1024); print length $x'")
    async with docker.builder.workshop(new_order(), wanted) as shop:
        assert await shop.work(Said()) == 137


async def test_too_much_disk_ends_it(docker: DockerHands) -> None:
    order = dataclasses.replace(new_order(cache="app_f.0"), disk_mb=48)
    many = "for i in 1 2 3 4 5 6 7 8 9; do head -c 8m /dev/zero > {}/$i; sleep 0.3; done; sleep 600"

    async def fill(folder: str) -> None:
        wanted = await setup(docker, many.replace("{}", folder), cache="a")
        async with docker.builder.workshop(order, wanted) as shop:
            await shop.put(files(work__in="", cache__full__in=""))
            await shop.work(Said())

    for folder in ("/work", "/cache/full"):
        with pytest.raises(StepFailed, match="more than its 48 MB of disk"):
            await fill(folder)


async def test_every_line_comes_also_those_without_an_end(docker: DockerHands) -> None:
    said = Said()
    wanted = await setup(docker, "perl -e 'for (1..20000) { print qq(line $_\\n) } print q(end)'")
    async with docker.builder.workshop(new_order(), wanted) as shop:
        await shop.work(said)
    assert said.of("stdout") == [*(f"line {number}" for number in range(1, 20001)), "end"]


async def test_two_builds_of_an_app_do_not_write_one_cache(docker: DockerHands) -> None:
    order = new_order(cache="app_d.0")
    waits = await setup(docker, "sleep 600", cache="a")
    async with docker.builder.workshop(order, waits) as first:
        task = asyncio.create_task(first.work(Said()))
        said = Said()
        finds = await setup(docker, "grep -c ' /cache ' /proc/mounts", cache="a")
        async with docker.builder.workshop(order, finds) as second:
            await second.work(said)
        assert said.of("stdout") == ["0"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_cache_is_forgotten_as_other_caches_are(docker: DockerHands) -> None:
    order = new_order(cache="app_e.0")
    docker.builder.layers()
    async with docker.builder.workshop(order, await setup(docker, "true", cache="a")) as shop:
        await shop.work(Said())
        name = f"{PREFIX}-cache-app_e.0-a"
        assert name in docker.builder.layers()
        assert not await docker.builder.forget(name)
    later = docker_builder(PREFIX)
    await later.sweep(())
    assert name in later.layers()
    assert await docker.builder.forget(name)
    assert await docker.builder.forget(name)
    with pytest.raises(Refused, match="no such volume"):
        await docker.api.call("GET", f"/volumes/{name}")


async def loaded(docker: DockerHands, base: FoundImage, tar: io.BytesIO) -> str:
    archive, order = io.BytesIO(), new_order()
    config = {"Cmd": ["cat", "/work/in"], "Labels": {"a": "b"}}
    image = image_archive.write(base, [image_archive.layer(tar)], config, archive)
    built = await docker.builder.load(order, archive, image, (8080,))
    assert (built.id, built.ports) == (image, (8080,))
    assert built.size_bytes > 0
    [kept] = [found for found in await docker.builder.images() if found.deployment == order.deployment]
    assert (kept.id, kept.workload) == (image, order.workload)
    return image


async def test_what_was_made_becomes_an_image_on_its_base(docker: DockerHands) -> None:
    base = await docker.builder.find(new_order(), BASE, Said())
    image = await loaded(docker, base, files(work__in="content"))
    assert await loaded(docker, base, files(work__in="content")) == image
    found = await docker.api.call("GET", f"/images/{image}/json")
    assert found["RootFS"]["Layers"][:-1] == list(base.layers)
    assert found["Config"]["Labels"] == {"a": "b"}
    said = Said()
    built = FoundImage(image, found["Config"], (), "amd64", "linux")
    async with docker.builder.workshop(
        new_order(), Setup(built, ("cat", "/work/in"), 1, 1, {}, None)
    ) as shop:
        assert await shop.work(said) == 0
    assert said.of("stdout") == ["content"]


async def test_a_layer_that_is_not_what_is_said_is_not_taken_by_the_engine(docker: DockerHands) -> None:
    base = await docker.builder.find(new_order(), BASE, Said())
    layer = image_archive.layer(files(work__in="content"))
    lie = image_archive.Layer(layer.tar, f"sha256:{hashlib.sha256(b'another').hexdigest()}", layer.size)
    archive = io.BytesIO()
    image = image_archive.write(base, [lie], {}, archive)
    with pytest.raises(StepFailed, match="did not take the image"):
        await docker.builder.load(new_order(), archive, image, ())
