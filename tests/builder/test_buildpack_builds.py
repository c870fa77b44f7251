"""Buildpacks and builder images on the real engine: fetched, run, packed, and what comes out answers."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from builder.engine_api import EngineApi
from contracts.credentials import RegistryLogin
from contracts.ids import new_id
from contracts.workload import BuildFailed, BuildSettings, BuildSucceeded, RuntimePreset

from tests.builder.cnb_images import CnbImages, cnb_images
from tests.builder.gateway import Gateway
from tests.harness import address_of, eventually
from tests.ports.git_server import GitServer, git_server
from tests.ports.image_builders import URL, clear, docker_builder
from tests.ports.registry import PASSWORD, USER, registry, saved

ROOT = Path(__file__).parents[2]
PREFIX = "bldpack"
EXAMPLE = ROOT / "examples" / "hello-buildpack"
UID = 123_456
STACK = RuntimePreset(
    name="buildpack-22",
    type="buildpack",
    version="22",
    image="berth/buildpack:22",
    build_image="berth/buildpack:22-build",
)


def folder(path: Path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}


APP = folder(EXAMPLE / "app")
# A second buildpack, which sees what the first has left for it.
SECOND = {
    "bin/detect": "#!/bin/sh\necho Second\n",
    "bin/compile": '#!/bin/sh\necho "found: $GREETING_FOUND $STACK $(id -u) $HOME $(pwd)"\n',
}


Built = BuildSucceeded | BuildFailed


@dataclass
class Packs:
    gateway: Gateway
    server: GitServer
    api: EngineApi
    images: CnbImages

    async def begin(self, **settings: Any) -> None:
        known: dict[str, Any] = {"allow_private_git": True, "lease_seconds": 20, "concurrency": 2}
        await self.gateway.builder(None, prefix=PREFIX, engine=URL, **known, **settings)

    def url(self, name: str) -> str:
        return f"{self.server.url}/{name}.git"

    async def build(
        self, files: Mapping[str, str], settings: BuildSettings, **changes: Any
    ) -> tuple[Built, list[str]]:
        request = self.gateway.upload(
            files, **{"build": settings, "runtimes": (STACK,), "uid": UID, **changes}
        )
        await self.gateway.harness.publish(request)
        result = (await self.gateway.finished(request, 60)).result
        lines = [line.text for line in await self.gateway.log(request)]
        assert isinstance(result, BuildSucceeded | BuildFailed)
        return result, lines

    async def answer(self, built: BuildSucceeded, process: str = "web") -> str:
        """What an instance says, run as nodes run it."""
        command = built.processes.get(process)
        started = {} if command is None else {"Entrypoint": ["/bin/sh", "-c"], "Cmd": [command]}
        made = await self.api.call(
            "POST",
            "/containers/create",
            body={
                "Image": built.image,
                "User": f"{UID}:{UID}",
                "Env": ["PORT=8099", "HOME=/tmp"],
                "ExposedPorts": {"8099/tcp": {}},
                "HostConfig": {
                    "PortBindings": {"8099/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
                    "CapDrop": ["ALL"],
                    "SecurityOpt": ["no-new-privileges"],
                },
                **started,
            },
        )
        try:
            await self.api.call("POST", f"/containers/{made['Id']}/start")
            found = await self.api.call("GET", f"/containers/{made['Id']}/json")
            port = found["NetworkSettings"]["Ports"]["8099/tcp"][0]["HostPort"]
            async with httpx.AsyncClient() as client:

                async def answered() -> str | None:
                    try:
                        response = await client.get(f"http://127.0.0.1:{port}/")
                    except httpx.HTTPError:
                        return None
                    assert response.status_code == 200
                    return response.text.strip()

                return await eventually(answered, seconds=20, what="an answer", every=0.1)
        finally:
            await self.api.call("DELETE", f"/containers/{made['Id']}", {"force": True})


@pytest.fixture(scope="module")
async def real(further_images: None) -> AsyncIterator[CnbImages]:
    """Only to make what is needed and to clear up: the service has a builder of its own."""
    api = EngineApi(URL)
    await clear(docker_builder(PREFIX), api)
    async with cnb_images(PREFIX) as images:
        yield images
        # A new one finds the caches that are there, as the one after a restart does.
        await clear(docker_builder(PREFIX), api)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GitServer]:
    # Of the engine's own bridge: that of the builds goes with the last builder.
    network = await EngineApi(URL).call("GET", "/networks/bridge")
    address = address_of(network)
    with git_server(tmp_path_factory.mktemp("buildpacks"), address) as server:
        server.repository("greeting", folder(EXAMPLE / "buildpack"))
        server.repository("second", SECOND)
        server.repository("broken", SECOND | {"bin/compile": "#!/bin/sh\necho oh no >&2\nexit 9\n"})
        server.repository("nothing", {"README": "no buildpack\n"})
        yield server


@pytest.fixture
async def packs(gateway: Gateway, real: CnbImages, server: GitServer) -> AsyncIterator[Packs]:
    opened = Packs(gateway, server, EngineApi(URL), real)
    await opened.begin()
    yield opened
    await gateway.harness.stop("builder")


@pytest.mark.promise("U11")
async def test_an_app_made_by_a_buildpack_answers(packs: Packs) -> None:
    app = {"workload": "app_01m7yesx66x54spkjjknej5sc3"}
    settings = BuildSettings(buildpacks=(packs.url("greeting"),))
    built, lines = await packs.build(APP, settings, **app)
    assert isinstance(built, BuildSucceeded), built
    assert built.recipe == "buildpacks"
    assert built.processes == {"web": "/launch 'exec perl .greeting/server.pl \"$GREETING_FILE\"'"}
    assert "-----> Greeting app detected" in lines
    assert any(line.startswith("The app names the buildpacks http://") for line in lines)
    assert any(line.startswith("Commit ") for line in lines)
    greeting = f"Hello from a buildpack, by the buildpack, as {UID} in /app"
    assert await packs.answer(built) == greeting
    # By itself, too.
    alone = built.model_copy(update={"processes": {}})
    assert await packs.answer(alone) == greeting

    found = await packs.api.call("GET", f"/images/{built.image}/json")
    assert found["Config"]["User"] == f"{UID}:{UID}"
    assert "STACK=heroku-22" in found["Config"]["Env"]
    assert found["RepoTags"] == [f"{PREFIX}/{app['workload']}:{found['RepoTags'][0].rpartition(':')[2]}"]

    # What it kept is there again, until the app is given an empty cache, or none at all.
    for cache, count in ((0, 2), (1, 1), (None, 1)):
        _, lines = await packs.build(APP, settings, cache=cache, **app)
        assert f"       Build {count} with this cache" in lines


@pytest.mark.promise("U10")
async def test_the_buildpacks_an_apps_source_lists(packs: Packs) -> None:
    listed = f"# ours\n{packs.url('greeting')}#v1\n\n{packs.url('second')}\n"
    procfile = "web: exec perl .greeting/server.pl README\nworker: echo 'it works'\n"
    files = APP | {".buildpacks": listed, "Procfile": procfile, "README": "Read me\n"}
    built, lines = await packs.build(files, BuildSettings())
    assert isinstance(built, BuildSucceeded), built
    assert any(line.startswith("Found .buildpacks with the buildpacks http://") for line in lines)
    assert f"found: yes heroku-22 {UID} /app /tmp/build" in lines
    assert set(built.processes) == {"web", "worker"}
    assert "Process worker: echo 'it works'" in lines
    assert (await packs.answer(built)).startswith("Read me, by the buildpack")


FAILURES: tuple[tuple[tuple[str, ...], dict[str, str], int | None, str], ...] = (
    (("greeting",), {"main.c": ""}, 1, "greeting.git does not recognize the app"),
    (("greeting", "broken"), APP, 9, "bin/compile of the buildpack http://"),
    (("nothing",), APP, None, "nothing.git is no buildpack: it has no program bin/detect"),
    (("absent",), APP, 128, "absent.git: the repository could not be fetched"),
    (("second",), APP, None, "nothing says how the app is started"),
)


async def test_buildpacks_that_fail(packs: Packs) -> None:
    async def fails(names: tuple[str, ...], files: dict[str, str], code: int | None, words: str) -> None:
        settings = BuildSettings(buildpacks=tuple(packs.url(name) for name in names))
        failed, lines = await packs.build(files, settings)
        assert isinstance(failed, BuildFailed)
        assert words in failed.message
        assert (failed.step, failed.exit_code) == ("build", code)
        assert ("oh no" in lines) == ("broken" in names)

    await asyncio.gather(*(fails(*case) for case in FAILURES))


async def test_an_app_made_by_a_builder_image_answers(packs: Packs) -> None:
    app = {"workload": "app_01m7yesx66x54spkjjknej5sc4"}
    files = APP | {
        "server.pl": (EXAMPLE / "buildpack" / "server.pl").read_text(),
        "Procfile": "extra: sleep 9\n",
    }
    built, lines = await packs.build(files, BuildSettings(builder=packs.images.builder), **app)
    assert isinstance(built, BuildSucceeded), (built, lines)
    assert built.recipe == "cnb"
    assert built.processes == {
        "web": "/cnb/process/web",
        "worker": "/cnb/process/worker",
        "extra": "/cnb/lifecycle/launcher 'sleep 9'",
    }
    assert f"The builder speaks platform API 0.13 and runs apps on {packs.images.run}" in lines
    assert [line for line in lines if line.startswith("===>")][-1] == "===> EXPORTING"
    greeting = f"Hello from a buildpack, by a lifecycle, as {UID} in /home"
    assert await packs.answer(built) == greeting
    assert await packs.answer(built.model_copy(update={"processes": {}})) == greeting

    found = await packs.api.call("GET", f"/images/{built.image}/json")
    run = await packs.api.call("GET", f"/images/{packs.images.run}/json")
    assert found["RootFS"]["Layers"][: len(run["RootFS"]["Layers"])] == run["RootFS"]["Layers"]
    assert "berth.build" not in found["Config"]["Labels"]
    assert [tag.partition(":")[0] for tag in found["RepoTags"]] == [f"{PREFIX}/{app['workload']}"]

    _, lines = await packs.build(files, BuildSettings(builder=packs.images.builder), **app)
    assert "Build 2 with this cache" in lines


async def test_a_builder_image_behind_a_log_in(packs: Packs) -> None:
    """The app's own opens it, for this app alone."""
    await packs.gateway.harness.stop("builder")
    await packs.begin(allow_private_registry=True)
    async with packs.api.stream("GET", f"/images/{packs.images.builder}/get") as chunks:
        archive = b"".join([chunk async for chunk in chunks])
    files = {"greeting.txt": "Hi\n"}
    with registry(saved(archive)) as private:
        host = private.partition("/")[0]

        async def build(workload: str, password: str | None) -> tuple[Built, list[str]]:
            if password is not None:
                login = RegistryLogin(host=host, user=USER, password=password)
                packs.gateway.credentials[workload] = {"registry": login}
            return await packs.build(files, BuildSettings(builder=private), workload=workload)

        app = new_id("app")
        built, lines = await build(app, PASSWORD)
        assert isinstance(built, BuildSucceeded), (built, lines)
        assert built.processes["web"] == "/cnb/process/web"
        assert PASSWORD not in repr(lines)
        for password in (None, "wrong"):
            failed, lines = await build(new_id("app"), password)
            assert isinstance(failed, BuildFailed)
            assert (failed.step, private in failed.message) == ("build", True), failed
            assert "PUT …/credentials/registry sets" in (failed.hint or "")
        # Taken away, it opens nothing to the app itself, either.
        del packs.gateway.credentials[app]
        failed, _ = await build(app, None)
        assert isinstance(failed, BuildFailed)


async def test_a_builder_offered_as_a_runtime(packs: Packs) -> None:
    offered = RuntimePreset(
        name="example", type="cnb", version="1", image=packs.images.builder, start_command="exec sleep 9"
    )
    files = {"greeting.txt": "Hi\n"}
    built, _ = await packs.build(files, BuildSettings(runtime="example"), runtimes=(offered,))
    assert isinstance(built, BuildSucceeded), built
    assert built.recipe == "example"
    assert built.processes["web"] == "/cnb/lifecycle/launcher 'exec sleep 9'"


async def test_builders_that_fail(packs: Packs) -> None:
    async def fails(name: str, files: dict[str, str], code: int | None, words: str) -> None:
        failed, _ = await packs.build(files, BuildSettings(builder=name))
        assert isinstance(failed, BuildFailed)
        assert words in failed.message
        assert failed.exit_code == code
        assert code is None or failed.hint

    known = packs.images.builder
    await asyncio.gather(
        fails(known, {"main.c": ""}, 20, "of the builder's buildpacks recognizes the app (exit code 20)"),
        fails(known, {"greeting.txt": "fail"}, 51, "a buildpack failed to build the app (exit code 51)"),
        fails("berth/base:bookworm", APP, None, "cannot be used as a builder"),
        fails("127.0.0.1:5000/builder:1", APP, None, "private address"),
        fails("sha256:0123456789", APP, None, "is not a valid name"),
    )
