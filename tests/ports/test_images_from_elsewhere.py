"""Images that somebody else has built, pulled by the real engine from a registry behind a password."""

import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from builder.engine_api import EngineApi, Refused
from builder.image_builder import StepFailed
from contracts.credentials import RegistryLogin
from contracts.image_reference import ImageReference, parse

from tests.ports.image_builders import (
    BASE,
    URL,
    Said,
    clear,
    context,
    docker_builder,
    new_order,
)
from tests.ports.registry import PASSWORD, USER, Image, made, registry

PREFIX = "bldimg"
API = EngineApi(URL)


@pytest.fixture(scope="module")
async def builder() -> AsyncIterator[Any]:
    found = docker_builder(PREFIX, allow_private_registry=True)
    await clear(found, API)
    yield found
    await clear(found, API)


@pytest.fixture
def asked() -> list[str | None]:
    return []


@pytest.fixture
def reference(asked: list[str | None]) -> Iterator[ImageReference]:
    with registry(asked=asked) as text:
        yield parse(text)


def login(reference: ImageReference, password: str = PASSWORD) -> RegistryLogin:
    return RegistryLogin(host=reference.host, user=USER, password=password)


async def test_a_private_image_gets_the_apps_name_and_no_other(
    builder: Any, reference: ImageReference
) -> None:
    order, said = new_order(), Said()
    image = await builder.pull(order, reference, login(reference), said)
    found = await API.call("GET", f"/images/{image.id}/json")
    # The same image may have come to this engine by another test's registry.
    names = [name for name in (*found["RepoTags"], *found["RepoDigests"]) if "berth-test/pulled" not in name]
    assert names == [f"{PREFIX}/{order.workload}:{order.deployment}"]
    assert image.size_bytes == found["Size"]
    assert any(f"{reference} is sha256:" in text for text in said.of("platform"))
    assert PASSWORD not in repr(said.lines)
    # By its own name nobody else can build on it: the registry would have to let him in.
    with pytest.raises(Refused):
        await API.call("GET", f"/images/{reference}/json")
    # It is one of the app's images, published and removed like any other.
    published = await builder.publish(order, image, said)
    assert published.reference == image.id
    [kept] = [k for k in await builder.images() if k.deployment == order.deployment]
    assert await builder.remove(kept)
    with pytest.raises(Refused):
        await API.call("GET", f"/images/{PREFIX}/{order.workload}:{order.deployment}/json")


async def test_a_digest_is_taken_at_its_word(builder: Any, reference: ImageReference) -> None:
    said = Said()
    first = await builder.pull(new_order(), reference, login(reference), said)
    digest = said.of("platform")[0].rpartition(" ")[2]
    pinned = replace(reference, tag=None, digest=digest)
    assert (await builder.pull(new_order(), pinned, login(reference), said)).id == first.id
    wrong = replace(pinned, digest="sha256:" + "0" * 64)
    with pytest.raises(StepFailed):
        await builder.pull(new_order(), wrong, login(reference), said)
    # Who knows it, and may not read it, is not given what the engine has of it.
    with pytest.raises(StepFailed):
        await builder.pull(new_order(), pinned, None, said)


async def test_without_the_right_log_in(
    builder: Any, reference: ImageReference, asked: list[str | None]
) -> None:
    for given, hint in ((None, "for a private one"), (login(reference, "wrong"), "and the log-in")):
        with pytest.raises(StepFailed, match="could not be pulled") as failed:
            await builder.pull(new_order(), reference, given, Said())
        assert failed.value.step == "source"
        assert hint in (failed.value.hint or "")
    asked.clear()
    other = RegistryLogin(host="ghcr.io", user=USER, password=PASSWORD)
    with pytest.raises(StepFailed):
        await builder.pull(new_order(), reference, other, Said())
    assert asked
    assert set(asked) == {None}


async def test_what_is_never_pulled(builder: Any, reference: ImageReference) -> None:
    stranger = new_order()
    for name in (
        BASE,
        f"docker.io/{BASE}",
        f"{PREFIX}/{stranger.workload}:{stranger.deployment}",
        f"registry.example.com/{stranger.organization}/{stranger.workload}@sha256:{'0' * 64}",
    ):
        with pytest.raises(StepFailed, match="the platform's own"):
            await builder.pull(new_order(), parse(name), None, Said())
    careful = docker_builder(PREFIX)
    for name in (str(reference), "localhost/x", "169.254.169.254/x", "[::1]:5000/x"):
        with pytest.raises(StepFailed, match="private address"):
            await careful.pull(new_order(), parse(name), None, Said())
    with pytest.raises(StepFailed, match="does not exist"):
        await careful.pull(new_order(), parse("nowhere.invalid/x"), None, Said())


@pytest.mark.parametrize(
    ("image", "words"),
    [(made(b"x" * 2_000_000), "larger than 1 MiB"), (made(volumes=9), "declares 9 volumes")],
    ids=["too large", "many volumes"],
)
async def test_an_image_with_too_much_in_it_is_not_kept(builder: Any, image: Image, words: str) -> None:
    order = replace(new_order(), disk_mb=1)
    with registry(image) as text:
        reference = parse(text)
        with pytest.raises(StepFailed, match=words):
            await builder.pull(order, reference, login(reference), Said())
    assert not [k for k in await builder.images() if k.deployment == order.deployment]


async def test_what_an_app_is_made_of_stays_everybodys_base(builder: Any) -> None:
    order = new_order()
    where = {"repo": f"{PREFIX}/{order.workload}", "tag": order.deployment}
    await API.call("POST", f"/images/{BASE}/tag", where)
    files: io.BytesIO = context({"Dockerfile": f"FROM {BASE}\nRUN true\n"})
    await builder.build(new_order(), files, "Dockerfile", (BASE,), Said())


async def test_a_build_stands_on_a_private_image_and_nobody_else_can(
    builder: Any, reference: ImageReference
) -> None:
    """The log-in opens the base of this build alone: not its name, its digest, its layers, nor the build's
    own name for it are of use to a stranger on the same engine."""
    text = f"ARG TAG={reference.tag}\nFROM {reference.repository}:$TAG AS base\nFROM {BASE}\n"
    text += f"COPY --from={reference} /hello /hello\nRUN env && test -e /hello\n"
    order, said = replace(new_order(), cache="elsewhere"), Said()
    image = await builder.build(
        order, context({"Dockerfile": text}), "Dockerfile", (str(reference), BASE), said,
        login=login(reference),
    )  # fmt: skip
    found = await API.call("GET", f"/images/{image.id}/json")
    told = (
        repr(said.lines) + repr(found["Config"]) + repr(await API.call("GET", f"/images/{image.id}/history"))
    )
    assert PASSWORD not in told
    assert any(f"COPY --from={reference}" in line for line in said.of("platform"))

    digest = next(line for line in said.of("platform") if "sha256:" in line).rpartition(" ")[2]
    own = f"{PREFIX}/base/{order.workload}:{order.deployment}-{crc32(str(reference).encode())}"
    assert await API.call("GET", f"/images/{own}/json")
    for name in (str(reference), f"{reference.repository}@{digest}", own):
        for given in (None, login(reference, "wrong")):
            files = context({"Dockerfile": f"FROM {name}\n"})
            with pytest.raises(StepFailed):
                await builder.build(new_order(), files, "Dockerfile", (name,), Said(), login=given)
    # It is removed with what was built on it.
    kept = [k for k in await builder.images() if k.deployment == order.deployment]
    assert {name for k in kept for name in k.tags} == {own, f"{PREFIX}/{order.workload}:{order.deployment}"}
    assert all([await builder.remove(k) for k in sorted(kept, key=lambda k: own in k.tags)])
    with pytest.raises(Refused):
        await API.call("GET", f"/images/{own}/json")


async def test_a_builder_image_is_found_by_the_build_whose_log_in_opens_it_alone(
    builder: Any, reference: ImageReference
) -> None:
    order, said = new_order(), Said()
    name = str(reference)
    found = await builder.find(order, name, said, login=login(reference))
    assert found.layers
    digest = next(line for line in said.of("platform") if "sha256:" in line).rpartition(" ")[2]
    [kept] = [k for k in await builder.images() if k.deployment == order.deployment]
    assert (kept.id, kept.workload) == (found.id, order.workload)
    # It is on the engine, under whatever name a stranger asks for it.
    for asked_for in (name, f"{reference.repository}@{digest}", *kept.tags):
        for given in (None, login(reference, "wrong")):
            with pytest.raises(StepFailed) as failed:
                await builder.find(new_order(), asked_for, Said(), login=given)
            assert failed.value.step == "build"
    # What the app may read no more is not found by its next build, either.
    with pytest.raises(StepFailed, match="cannot be had") as failed:
        await builder.find(replace(new_order(), workload=order.workload), name, Said(), login=None)
    assert "PUT …/credentials/registry" in (failed.value.hint or "")
    # Both a builder and its run image may be of one deployment.
    with registry(made(b"run")) as another:
        run = parse(another)
        await builder.find(order, another, Said(), login=login(run))
    tags = {tag for k in await builder.images() if k.deployment == order.deployment for tag in k.tags}
    assert len(tags) == 2
    assert all([await builder.remove(k) for k in await builder.images() if k.deployment == order.deployment])
