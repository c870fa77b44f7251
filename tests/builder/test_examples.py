"""Every example on the real engine: what comes out is small, runs as nobody in particular, and answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import certifi
import pytest
from builder.docker_builder import DockerBuilder
from builder.engine_api import EngineApi
from contracts.workload import BuildSettings, BuildSucceeded, RuntimePreset

from tests.builder.gateway import Gateway
from tests.builder.test_real_builds import BUNDLES, Built, answer, files_in
from tests.ports.image_builders import URL, clear, docker_builder

PREFIX = "bldexmpl"
EXAMPLES = Path(__file__).parents[2] / "examples"


def preset(type: str, version: str, **changes: str) -> RuntimePreset:
    image = f"berth/{type}:{version}"
    build = None if type == "static" else f"{image}-build"
    name = type if type == "static" else f"{type}-{version}"
    return RuntimePreset(name=name, type=type, version=version, image=image, build_image=build, **changes)


PRESETS = (
    preset("python", "3.11"),
    preset("node", "24"),
    preset("php", "8.2"),
    preset("ruby", "3.1"),
    preset("go", "1.23"),
    preset("java", "17"),
    preset("static", "1"),
)


@pytest.fixture(scope="module")
def further(further_images: None) -> None:
    """The images of every runtime."""


@pytest.fixture
async def engine_api() -> EngineApi:
    return EngineApi(URL)


@pytest.fixture
async def real(engine_api: EngineApi) -> AsyncIterator[DockerBuilder]:
    builder = docker_builder(PREFIX)
    await clear(builder, engine_api)
    yield builder
    await clear(builder, engine_api)


@pytest.fixture
async def built(further: None, gateway: Gateway, real: DockerBuilder) -> AsyncIterator[Built]:
    bundle = next((path for path in BUNDLES if path.exists()), Path(certifi.where()))
    await gateway.builder(None, prefix=PREFIX, engine=URL, ca_bundle=bundle, lease_seconds=20)
    yield Built(gateway)
    await gateway.harness.stop("builder")


def files(folder: str) -> dict[str, str | bytes]:
    root = EXAMPLES / folder
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("example", "word", "greeting", "why"),
    [
        ("hello-node", "node-24", "This is Node.js", "package.json and package-lock.json: Node.js with npm"),
        ("hello-php", "php-8.2", "This is PHP 8.2", "composer.json: PHP with Composer"),
        ("hello-ruby", "ruby-3.1", "This is Ruby 3.1", "Gemfile: Ruby with Bundler"),
        ("hello-go", "go-1.23", "This is Go", "go.mod: a Go module, which makes hello-go"),
        ("hello-java", "java-17", "This is Java 17", "src/Main.java: Java without a build tool"),
        ("hello-static", "static", "These are files", "index.html: a static site"),
    ],
)
async def test_an_example(
    built: Built, engine_api: EngineApi, example: str, word: str, greeting: str, why: str
) -> None:
    t = time.monotonic()
    request = built.gateway.upload(files(example), runtimes=PRESETS)
    finished = await built.of(request)
    for line in await built.gateway.log(request):
        print(line.stream, line.text)
    result = finished.result
    assert isinstance(result, BuildSucceeded), result
    print("TIME", time.monotonic() - t, result.size_bytes // 1000000, "MB")
    assert result.recipe == word
    assert any(why in line.text for line in await built.gateway.log(request))
    assert greeting in await answer(engine_api, result.image)
    print("TIME", time.monotonic() - t)
