"""What a build is given: its steps have it, and neither the image nor its history nor the log does."""

import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import docker
import pytest
from builder.docker_builder import DockerBuilder
from builder.engine_api import EngineApi
from builder.given import opened
from contracts import variables
from contracts.errors import ProviderFailed
from contracts.events import DeploymentRequested
from contracts.ids import new_id
from contracts.variables import Variable
from contracts.workload import BuildFailed, BuildSettings, BuildSucceeded, Limits, UploadSource
from runtime.seal import Seal

from tests.builder.gateway import Gateway
from tests.ports.image_builders import URL, clear, docker_builder

PREFIX = "bldsecret"
TOKEN = "npm-t0ken 'of' \"the\"\nsecond-line $HOME"
MODE = "fast-and-plain"


@pytest.fixture
async def real() -> AsyncIterator[DockerBuilder]:
    """Only to clear up: the service makes its own."""
    builder, api = docker_builder(PREFIX), EngineApi(URL)
    await clear(builder, api)
    yield builder
    await clear(builder, api)


def sealed(gateway: Gateway, workload: str, *given: Variable) -> str:
    seal = Seal(gateway.harness.settings.seal_key_of("variables"))
    return seal.close(variables.all_of(given), variables.for_builder(workload))


def build_variables() -> tuple[Variable, ...]:
    return (
        Variable(name="TOKEN", value=TOKEN, scope="build"),
        Variable(name="MODE", value=MODE, scope="both", secret=False),
        Variable(name="RUNTIME_ONLY", value="for-instances-alone"),
    )


def everything_of(image: str) -> Iterator[bytes]:
    """Configuration, history and every layer of an image, as whoever pulls it gets them."""
    client: Any = docker.from_env()
    try:
        yield json.dumps(client.api.inspect_image(image)).encode()
        yield json.dumps(client.api.history(image)).encode()
        rest = b""
        for chunk in client.api.get_image(image):
            yield rest + chunk
            rest = chunk[-200:]
    finally:
        client.close()


def written_in(image: str) -> Iterator[bytes]:
    """The same, but of files only those below the folders a step writes in: the rest is a base image's."""
    client: Any = docker.from_env()
    made = client.api.create_container(image, ["true"])["Id"]
    try:
        yield json.dumps(client.api.inspect_image(image)).encode()
        yield json.dumps(client.api.history(image)).encode()
        for folder in ("/app", "/run", "/dev", "/tmp", "/root"):
            yield b"".join(client.api.get_archive(made, folder)[0])
    finally:
        client.api.remove_container(made, force=True)
        client.close()


def nowhere(parts: Iterator[bytes], *words: str) -> None:
    for part in parts:
        for word in words:
            assert word.encode() not in part


@pytest.mark.promise("U4")
async def test_a_rendered_build_has_its_secrets_and_leaves_none(
    gateway: Gateway, real: DockerBuilder
) -> None:
    await gateway.builder(None, prefix=PREFIX, engine=URL, lease_seconds=20)
    app = new_id("app")
    script = (
        "import os; token, mode = os.environ['TOKEN'], os.environ['MODE']\n"
        f"assert (len(token), mode) == ({len(TOKEN)}, {MODE!r})\n"
        "assert 'RUNTIME_ONLY' not in os.environ\n"
        f"print('has', token, {time.time_ns()})\n"
    )
    files = {"say.py": script, "requirements.txt": "", "Procfile": "web: python x.py\n"}
    settings = BuildSettings(build_command="python3 say.py")
    request = gateway.upload(
        files, workload=app, build=settings, variables=sealed(gateway, app, *build_variables())
    )
    await gateway.harness.publish(request)
    result = (await gateway.finished(request, 90)).result
    texts = [line.text for line in await gateway.log(request)]
    assert isinstance(result, BuildSucceeded), (result, texts)
    assert any(text.startswith("has ********") for text in texts)
    assert not [text for text in texts if "t0ken" in text or "second-line" in text]
    first, second = TOKEN.split("\n")
    nowhere(everything_of(result.image), "npm-t0ken", second, "for-instances-alone")
    assert first.startswith("npm-t0ken")
    # Nor does the one between, in which the step has run, and which only the builder has.
    nowhere(written_in(step_with("say.py")), "npm-t0ken", second, "for-instances-alone")


def step_with(word: str) -> str:
    """The newest nameless image that a step with this word has made."""
    client: Any = docker.from_env()
    try:
        newest = sorted(client.api.images(all=True), key=lambda found: -int(found["Created"]))
        for found in newest[:40]:
            made_by = client.api.history(found["Id"])[0]["CreatedBy"]
            if f"with-secrets python3 {word}" in made_by:
                return str(found["Id"])
        raise AssertionError(f"no step has run {word}")
    finally:
        client.close()


async def test_a_customers_dockerfile_gets_what_it_declares_and_is_no_secret(
    gateway: Gateway, real: DockerBuilder
) -> None:
    await gateway.builder(None, prefix=PREFIX, engine=URL, lease_seconds=20)
    app = new_id("app")
    text = (
        "FROM berth/base:bookworm\nARG MODE\nARG TOKEN=none\n"
        f'RUN echo "mode=$MODE token=$TOKEN" # {time.time_ns()}\n'
    )
    request = gateway.upload(
        {"Dockerfile": text}, workload=app, variables=sealed(gateway, app, *build_variables())
    )
    await gateway.harness.publish(request)
    result = (await gateway.finished(request, 60)).result
    assert isinstance(result, BuildSucceeded), result
    assert f"mode={MODE} token=none" in [line.text for line in await gateway.log(request)]
    nowhere(everything_of(result.image), "npm-t0ken", "for-instances-alone")


async def test_a_variable_cannot_name_a_base_that_may_not_be_had(
    gateway: Gateway, real: DockerBuilder
) -> None:
    await gateway.builder(None, prefix=PREFIX, engine=URL, lease_seconds=20)
    app = new_id("app")
    base = Variable(name="BASE", value="sha256:" + "0" * 64, scope="build", secret=False)
    request = gateway.upload(
        {"Dockerfile": "ARG BASE=berth/base:bookworm\nFROM $BASE\n"},
        workload=app,
        variables=sealed(gateway, app, base),
    )
    await gateway.harness.publish(request)
    result = (await gateway.finished(request, 30)).result
    assert isinstance(result, BuildFailed)
    assert "by the id" in result.message


def test_other_secrets_are_another_digest_and_what_cannot_be_opened_is_said() -> None:
    app = new_id("app")
    context = variables.for_builder(app)

    def given(text: str, value: str) -> DeploymentRequested:
        one = variables.all_of((Variable(name="A", value=value, scope="build"),))
        return DeploymentRequested(
            deployment=new_id("dep"),
            number=1,
            workload=app,
            organization=new_id("org"),
            app_name="x",
            source=UploadSource(source=new_id("src"), sha256="0" * 64, size=1),
            build=BuildSettings(),
            runtimes=(),
            limits=Limits(cpu_millis=1, memory_mb=16, disk_mb=1),
            variables=Seal(text).close(one, context),
        )

    one = opened(given("key", "1"), "key")
    assert one.digest == opened(given("key", "1"), "key").digest
    assert one.digest != opened(given("key", "2"), "key").digest
    with pytest.raises(ProviderFailed, match="cannot be unsealed"):
        opened(given("another", "1"), "key")
