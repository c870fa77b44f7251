import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import docker
import pytest
from contracts.errors import Unavailable
from docker.errors import ImageNotFound
from embedded.engine import Engine
from embedded.images import BASE, MAKING, RECIPES, STACKS, Images, Stack, fingerprint

HOST = Engine(Path("unused")).host
DOCKERFILE = f"FROM {BASE} AS run\nENV GREETING=hello\n\nFROM run AS build\nENV TOOLS=yes\n"


@pytest.fixture(scope="module")
def client() -> Iterator[docker.DockerClient]:
    client = docker.DockerClient(base_url=HOST, timeout=60)
    yield client
    client.close()


@pytest.fixture
def stack(client: docker.DockerClient) -> Iterator[Stack]:
    stack = Stack(f"probe-{uuid4().hex[:8]}", "1")
    yield stack
    for tag in stack.tags().values():
        try:
            client.images.remove(tag, force=True)
        except ImageNotFound:
            continue


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def images(tmp_path: Path, stack: Stack, said: list[str]) -> Iterator[Images]:
    (tmp_path / stack.name).mkdir()
    (tmp_path / stack.name / "Dockerfile").write_text(DOCKERFILE)
    images = Images(HOST, tmp_path / "state", said.append, recipes=tmp_path)
    yield images
    images.close()


def test_a_fingerprint_changes_with_the_recipe_and_with_the_base() -> None:
    print_of = fingerprint({"Dockerfile": b"FROM a"}, "base-1")
    assert print_of == fingerprint({"Dockerfile": b"FROM a"}, "base-1")
    assert print_of != fingerprint({"Dockerfile": b"FROM b"}, "base-1")
    assert print_of != fingerprint({"Dockerfile": b"FROM a"}, "base-2")
    assert print_of != fingerprint({"Dockerfile": b"FROM a", "more": b""}, "base-1")


def test_a_base_that_is_there_is_not_asked_for_again(images: Images, said: list[str]) -> None:
    assert images.ensure_base() == images.ensure_base()
    assert said == []


def test_a_stack_is_built_once_and_again_when_its_recipe_changed(
    images: Images, stack: Stack, said: list[str], client: docker.DockerClient, tmp_path: Path
) -> None:
    images.ensure_base()
    images.ensure_stack(stack)
    assert said == [f"building {tag}" for tag in stack.tags().values()]
    run, build = (client.images.get(tag) for tag in stack.tags().values())
    assert "TOOLS=yes" in build.attrs["Config"]["Env"]
    assert "TOOLS=yes" not in run.attrs["Config"]["Env"]

    said.clear()
    images.ensure_stack(stack)
    assert said == []

    (tmp_path / stack.name / "Dockerfile").write_text(DOCKERFILE.replace("hello", "welcome"))
    images.ensure_stack(stack)
    assert len(said) == 2
    assert "GREETING=welcome" in client.images.get(stack.tags()["run"]).attrs["Config"]["Env"]


def test_a_broken_recipe_is_reported_with_its_step(images: Images, stack: Stack, tmp_path: Path) -> None:
    (tmp_path / stack.name / "Dockerfile").write_text(f"FROM {BASE} AS run\nRUN false\n")
    with pytest.raises(Unavailable, match=rf"berth/{stack.name}:1 could not be built: .*RUN false"):
        images.ensure_stack(stack)
    (tmp_path / stack.name / "Dockerfile").write_text(f"FROM {BASE} AS run\nENV no sense at all = 1\nNO\n")
    with pytest.raises(Unavailable, match=rf"berth/{stack.name}:1 could not be built: .*NO"):
        images.ensure_stack(stack)
    with pytest.raises(Unavailable, match="Dockerfile is missing"):
        images.ensure_stack(Stack("absent", "1"))


def test_what_builds_wait_for_is_marked_while_it_is_made(
    images: Images, stack: Stack, client: docker.DockerClient, tmp_path: Path
) -> None:
    marks = {f"{MAKING}:{stack.name}-1", f"{MAKING}:{stack.name}-1-build"}
    seen: set[str] = set()

    def look(line: str) -> None:
        if stack.name in line:
            names = {tag for image in client.images.list(name=MAKING) for tag in image.tags}
            seen.update(names & marks)

    watched = Images(HOST, tmp_path / "state", look, recipes=tmp_path)
    for needed in STACKS:
        shutil.copytree(RECIPES / needed.name, tmp_path / needed.name)
    assert images.missing((stack,)) == [stack]
    try:
        watched.ensure_further((stack,))
        assert images.missing((stack,)) == []
        (tmp_path / stack.name / "Dockerfile").write_text(f"FROM {BASE} AS run\nRUN false\n")
        with pytest.raises(Unavailable, match="RUN false"):
            watched.ensure_further((stack,))
    finally:
        watched.close()
    assert seen == marks
    assert not marks & {tag for image in client.images.list(name=MAKING) for tag in image.tags}


def test_an_app_ships_without_a_compiler_and_not_as_root(client: docker.DockerClient, tmp_path: Path) -> None:
    images = Images(HOST, tmp_path)
    images.ensure()
    images.close()
    python = next(stack for stack in STACKS if stack.name == "python")
    run, build = python.tags()["run"], python.tags()["build"]
    script = "import os, shutil, ssl; print(os.getuid(), *map(shutil.which, ['gcc', 'cc', 'make', 'g++']))"
    look = ["python", "-c", script]
    assert client.containers.run(run, look, remove=True, network="none") == b"1000 None None None None\n"
    assert b"None" not in client.containers.run(build, look, remove=True, network="none")
