"""Builds on the real engine: what comes out runs, under whatever user the platform gives it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import certifi
import httpx
import pytest
from builder.docker_builder import DockerBuilder
from builder.engine_api import EngineApi
from contracts.events import BuildFinished, DeploymentRequested
from contracts.ids import new_id
from contracts.reports import BuildLog
from contracts.workload import BuildFailed, BuildSettings, BuildSucceeded

from tests.builder.gateway import Gateway
from tests.harness import eventually
from tests.ports.image_builders import URL, clear, docker_builder

PREFIX = "bldreal"
# Where this machine's tools keep the certificates they trust, a company's own among them.
BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))
APP = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
{imports}

class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{greeting} from {{os.getuid()}}".encode())

HTTPServer(("0.0.0.0", int(os.environ["PORT"])), Answers).serve_forever()
"""


@pytest.fixture
async def engine_api() -> EngineApi:
    return EngineApi(URL)


@pytest.fixture
async def real(engine_api: EngineApi) -> AsyncIterator[DockerBuilder]:
    """Only to clear up: the service makes its own."""
    builder = docker_builder(PREFIX)
    await clear(builder, engine_api)
    yield builder
    await clear(builder, engine_api)


@pytest.fixture
async def built(gateway: Gateway, real: DockerBuilder) -> AsyncIterator["Built"]:
    bundle = next((path for path in BUNDLES if path.exists()), Path(certifi.where()))
    host = await gateway.builder(None, prefix=PREFIX, engine=URL, ca_bundle=bundle, lease_seconds=20)
    yield Built(gateway)
    await gateway.harness.stop("builder")
    assert host.ready is False


class Built:
    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def of(self, request: DeploymentRequested, seconds: float = 120) -> BuildFinished:
        await self.gateway.harness.publish(request)
        return await self.gateway.finished(request, seconds)

    async def image(self, files: dict[str, str], **changes: Any) -> BuildSucceeded:
        finished = await self.of(self.gateway.upload(files, **changes))
        assert isinstance(finished.result, BuildSucceeded), finished.result
        return finished.result


async def answer(api: EngineApi, image: str, uid: int = 123_456) -> str:
    """What an instance says, run as nodes run it: an organization's user, and no right beyond."""
    made = await api.call(
        "POST",
        "/containers/create",
        body={
            "Image": image,
            "User": f"{uid}:{uid}",
            "Env": ["PORT=8099"],
            "ExposedPorts": {"8099/tcp": {}},
            "HostConfig": {
                "PortBindings": {"8099/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
                "CapDrop": ["ALL"],
                "SecurityOpt": ["no-new-privileges"],
            },
        },
    )
    container = made["Id"]
    try:
        await api.call("POST", f"/containers/{container}/start")
        found = await api.call("GET", f"/containers/{container}/json")
        port = found["NetworkSettings"]["Ports"]["8099/tcp"][0]["HostPort"]
        async with httpx.AsyncClient() as client:

            async def answered() -> str | None:
                try:
                    return (await client.get(f"http://127.0.0.1:{port}/")).text
                except httpx.HTTPError:
                    return None

            return await eventually(answered, seconds=20, what="an answer", every=0.1)
    finally:
        await api.call("DELETE", f"/containers/{container}", {"force": True})


async def files_in(api: EngineApi, image: str, *command: str) -> str:
    made = await api.call(
        "POST",
        "/containers/create",
        body={"Image": image, "Cmd": list(command), "HostConfig": {"NetworkMode": "none"}, "Tty": True},
    )
    try:
        await api.call("POST", f"/containers/{made['Id']}/start")
        await api.call("POST", f"/containers/{made['Id']}/wait")
        query = {"stdout": True}
        async with api.stream("GET", f"/containers/{made['Id']}/logs", query) as chunks:
            return b"".join([chunk async for chunk in chunks]).decode()
    finally:
        await api.call("DELETE", f"/containers/{made['Id']}", {"force": True})


@pytest.mark.promise("R7.5")
async def test_a_dockerfile_app_answers(built: Built, engine_api: EngineApi) -> None:
    text = 'FROM berth/python:3.11\nCOPY app.py /srv/\nEXPOSE 8099\nCMD ["python3", "/srv/app.py"]\n'
    result = await built.image({"Dockerfile": text, "app.py": APP.format(imports="", greeting="Dockerfile")})
    assert result.recipe == "dockerfile"
    assert result.port == 8099
    assert await answer(engine_api, result.image) == "Dockerfile from 123456"


@pytest.mark.promise("U10")
async def test_a_python_app_answers_and_its_dependencies_stay_cached(
    built: Built, engine_api: EngineApi
) -> None:
    files = {
        "requirements.txt": "itsdangerous==2.2.0\n",
        "Procfile": "web: python app.py\nworker: python -c 'print(1)'\n",
        "app.py": APP.format(imports="import itsdangerous", greeting="{itsdangerous.__version__}"),
    }
    app = {"workload": new_id("app"), "organization": new_id("org")}
    first = await built.image(files, **app)
    assert first.recipe == "python-3.11"
    assert first.port is None
    assert first.processes == {"web": "python app.py", "worker": "python -c 'print(1)'"}
    assert await answer(engine_api, first.image, uid=200_001) == "2.2.0 from 200001"

    begun = time.monotonic()
    again = {"app.py": files["app.py"].replace(" from {", " again from {")}
    changed = built.gateway.upload(files | again, **app)
    finished = await built.of(changed)
    assert isinstance(finished.result, BuildSucceeded)
    lines = [line.text for line in await built.gateway.log(changed)]
    assert not any("Collecting" in line or "Downloading" in line for line in lines)
    assert time.monotonic() - begun < 5
    assert await answer(engine_api, finished.result.image) == "2.2.0 again from 123456"

    # Nothing that is needed only to build: no installer, no compiler, no certificates, not even in history.
    listing = await files_in(engine_api, first.image, "sh", "-c", "ls /opt/venv/bin /run; which gcc cc make")
    assert "pip" not in listing
    assert "gcc" not in listing
    assert "berth" not in listing
    history = await engine_api.call("GET", f"/images/{first.image}/history")
    assert not any("ca.pem" in layer["CreatedBy"] for layer in history)
    found = await engine_api.call("GET", f"/images/{first.image}/json")
    assert found["Config"]["User"] == "1000:1000"
    assert not any("CERT" in variable or "CA_BUNDLE" in variable for variable in found["Config"]["Env"])


async def test_a_stage_of_a_dockerfile_with_its_arguments(built: Built, engine_api: EngineApi) -> None:
    text = (
        "ARG VERSION\nFROM berth/python:${VERSION} AS base\nARG GREETING=none\nENV GREETING=$GREETING\n"
        'FROM base AS web\nCOPY app.py /srv/\nCMD ["python3", "/srv/app.py"]\n'
        "FROM base AS broken\nRUN false\n"
    )
    app = APP.format(imports="", greeting="{os.environ['GREETING']}")
    arguments = {"VERSION": "3.11", "GREETING": "hello"}
    settings = BuildSettings(folder="web", target="web", arguments=arguments)
    files = {"web/Dockerfile": text, "web/app.py": app, "other/app.py": "raise SystemExit"}
    result = await built.image(files, build=settings)
    assert await answer(engine_api, result.image) == "hello from 123456"


async def test_a_project_is_installed_with_its_scripts(built: Built, engine_api: EngineApi) -> None:
    result = await built.image(
        {
            "pyproject.toml": (
                '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
                '[project]\nname = "greeter"\nversion = "1.0"\ndependencies = ["itsdangerous==2.2.0"]\n'
                '[project.scripts]\ngreet = "greeter:main"\n'
                '[tool.hatch.build.targets.wheel]\npackages = ["src/greeter"]\n'
            ),
            "src/greeter/__init__.py": "def main():\n    import greeter.app\n",
            "src/greeter/app.py": APP.format(imports="import itsdangerous", greeting="project"),
            "Procfile": "web: greet\n",
        }
    )
    assert await answer(engine_api, result.image) == "project from 123456"


@pytest.mark.promise("R8.3")
async def test_a_package_that_does_not_exist(built: Built) -> None:
    request = built.gateway.upload(
        {"requirements.txt": "itsdangerous==0.0.0.99\n", "Procfile": "web: x\n", "app.py": ""}
    )
    result = (await built.of(request)).result
    assert isinstance(result, BuildFailed)
    assert (result.step, result.exit_code) == ("build", 1)
    assert "requirements.txt" in (result.hint or "")
    errors = [line for line in await built.gateway.log(request) if line.stream == "stderr"]
    assert any("No matching distribution found" in line.text for line in errors)


@pytest.mark.promise("R8.1")
async def test_a_long_log_is_whole_and_in_order(built: Built) -> None:
    command = "for (1..5000) { print qq(line $_\\n) }"
    request = built.gateway.upload(
        {"Dockerfile": f"FROM berth/base:bookworm\nRUN perl -e '{command}' # {time.time_ns()}\n"}
    )
    expected = [f"line {number}" for number in range(1, 5001)]
    async with built.gateway.bus.subscribe(BuildLog, request.deployment) as live:
        await built.of(request)
        reported: list[str] = []
        while not live.empty():
            reported += [line.text for line in live.get_nowait().lines]
    assert [text for text in reported if text.startswith("line ")] == expected
    stored = await built.gateway.log(request)
    assert [line.text for line in stored if line.stream == "stdout"] == expected
    moments = [line.at for line in stored]
    assert moments == sorted(moments)


async def test_a_log_without_end_is_cut(gateway: Gateway, real: DockerBuilder) -> None:
    await gateway.builder(None, prefix=PREFIX, engine=URL, log_mb=0.02)
    command = "for (1..5000) { print qq(line $_\\n) } exit 3"
    request = gateway.upload(
        {"Dockerfile": f"FROM berth/base:bookworm\nRUN perl -e '{command}' # {time.time_ns()}\n"}
    )
    await gateway.harness.publish(request)
    result = (await gateway.finished(request, 30)).result
    assert isinstance(result, BuildFailed)
    assert result.exit_code == 3
    lines = await gateway.log(request)
    assert len(lines) < 3000
    assert sum("the output is left out" in line.text for line in lines) == 1
    assert lines[-1].text.startswith("The build failed")
    await gateway.harness.stop("builder")


async def test_a_line_is_live_before_the_build_goes_on(built: Built) -> None:
    request = built.gateway.upload(
        {"Dockerfile": f"FROM berth/base:bookworm\nRUN echo now; sleep 2 # {time.time_ns()}\n"}
    )
    async with built.gateway.bus.subscribe(BuildLog, request.deployment) as live:
        building = asyncio.create_task(built.of(request))
        while True:
            report = await asyncio.wait_for(live.get(), 20)
            heard = [line for line in report.lines if line.text == "now"]
            if heard:
                break
        delay = (built.gateway.harness.clock.now() - heard[0].at).total_seconds()
        assert not building.done()
        await building
    assert delay < 0.25
