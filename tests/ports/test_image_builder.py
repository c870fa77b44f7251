"""What every image builder does, real or fake; and what only a real engine can be held to."""

import asyncio
import io
import tarfile
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from builder.build_output import BuildOutput
from builder.docker_workshop import CPU_WEIGHT
from builder.engine_api import Refused, tar_of
from builder.image_builder import BuiltImage, Repository, StepFailed
from builder.own_registry import OwnRegistry
from contracts.credentials import RegistryLogin
from contracts.git_address import parse
from runtime.clock import SystemClock

from tests.harness import eventually
from tests.ports.image_builders import (
    BASE,
    FILES,
    PREFIX,
    DockerHands,
    FakeHands,
    Hands,
    Said,
    context,
    docker_builder,
    docker_hands,
    new_order,
)
from tests.ports.push_registry import push_registry


@pytest.fixture(scope="session")
async def docker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DockerHands]:
    async with docker_hands(tmp_path_factory.mktemp("git")) as hands:
        yield hands


@pytest.fixture(params=["fake", "docker"])
async def hands(request: pytest.FixtureRequest, docker: DockerHands) -> Hands:
    return docker if request.param == "docker" else FakeHands()


async def build(hands: Hands, *lines: str, said: Said | None = None, **changes: Any) -> BuiltImage:
    text = "\n".join((f"FROM {BASE}", *lines)) + "\n"
    files = {"Dockerfile": text, "file": "content"}
    return await hands.builder.build(
        new_order(**changes), context(files), "Dockerfile", (BASE,), said or Said()
    )


# --- any builder -------------------------------------------------------------------------------------


@pytest.mark.promise("R7.5")
async def test_builds_an_image_and_says_what_it_does(hands: Hands) -> None:
    said = Said()
    image = await build(hands, "RUN echo one", "RUN echo two >&2", "EXPOSE 8080", "RUN echo three", said=said)
    assert image.id.startswith("sha256:")
    assert image.size_bytes > 0
    assert image.ports == (8080,)
    assert said.of("stdout") == ["one", "three"]
    assert said.of("stderr") == ["two"]
    order = [text for _, text in said.lines if text in ("one", "two", "three") or text.startswith("Step")]
    assert order[0].endswith(f": FROM {BASE}")
    begun = [text[:6] for text in order[:8]]
    assert begun == ["Step 1", "Step 2", "one", "Step 3", "two", "Step 4", "Step 5", "three"]


async def test_a_failing_step_gives_its_exit_code(hands: Hands) -> None:
    with pytest.raises(StepFailed) as failed:
        await build(hands, "RUN exit 7")
    assert failed.value.step == "build"
    assert failed.value.exit_code == 7
    assert "`RUN exit 7`" in failed.value.message


async def test_a_dockerfile_that_is_not_there(hands: Hands) -> None:
    with pytest.raises(StepFailed) as failed:
        await hands.builder.build(new_order(), context({"a": ""}), "Dockerfile", (), Said())
    assert failed.value.step == "build"


async def test_knows_its_images_and_removes_them(hands: Hands) -> None:
    order = new_order()
    image = await build(hands, "RUN echo kept", deployment=order.deployment, workload=order.workload)
    published = await hands.builder.publish(order, image, Said())
    assert (published.reference, published.digest) == (image.id, image.id)
    [kept] = [found for found in await hands.builder.images() if found.deployment == order.deployment]
    assert (kept.id, kept.workload) == (image.id, order.workload)
    assert await hands.builder.remove(kept)
    assert await hands.builder.remove(kept)
    assert image.id not in {found.id for found in await hands.builder.images()}


async def test_tells_the_layers_it_used_once(hands: Hands) -> None:
    hands.builder.layers()
    await build(hands, "RUN echo layer")
    layers = hands.builder.layers()
    assert layers
    assert hands.builder.layers() == frozenset()
    assert await hands.builder.engine()


async def test_a_build_that_is_cancelled_ends(hands: Hands) -> None:
    said = Said()
    building = asyncio.create_task(build(hands, "RUN sleep 600", said=said))

    async def begun() -> bool:
        return any("RUN sleep" in text for text in said.of("platform"))

    await eventually(begun, what="the step")
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building


@pytest.mark.promise("R7.3")
async def test_fetches_a_repository(hands: Hands) -> None:
    tree = io.BytesIO()
    fetched = await hands.builder.fetch(new_order(), hands.repository, tree, Said())
    assert len(fetched.commit) == 40
    assert (fetched.author, fetched.message) == ("Tests", "first")
    assert fetched.submodules == ()
    tree.seek(0)
    with tarfile.open(fileobj=tree) as tar:
        assert {member.name for member in tar if member.isfile()} == set(FILES)


async def test_a_repository_that_is_not_there(hands: Hands) -> None:
    found = hands.repository
    said = Said()
    with pytest.raises(StepFailed) as failed:
        await hands.builder.fetch(
            new_order(),
            Repository(parse(f"{found.git.url}x", allow_http=True), found.address, None),
            io.BytesIO(),
            said,
        )
    assert failed.value.step == "source"
    assert failed.value.exit_code == 128
    assert "not found" in failed.value.message
    assert said.of("stderr")


async def test_discards_and_sweeps_what_is_not_there(hands: Hands) -> None:
    await hands.builder.discard(new_order().build, but="nobody")
    await hands.builder.sweep(())


# --- the Docker Engine ---------------------------------------------------------------------------------


async def container_of(docker: DockerHands) -> dict[str, Any] | None:
    filters = {"network": [docker.builder.network]}
    found = await docker.api.call("GET", "/containers/json", {"filters": filters})
    return next(iter(found), None)


async def test_a_cancelled_build_leaves_no_container(docker: DockerHands) -> None:
    building = asyncio.create_task(build(docker, "RUN sleep 600"))
    await eventually(lambda: container_of(docker), what="the step's container")
    building.cancel()
    await asyncio.gather(building, return_exceptions=True)

    async def gone() -> bool:
        return await container_of(docker) is None

    await eventually(gone, what="the end of the step")


async def test_steps_are_confined(docker: DockerHands) -> None:
    building = asyncio.create_task(build(docker, "RUN sleep 600"))
    try:
        found = await eventually(lambda: container_of(docker), what="the step's container")

        async def limited() -> dict[str, Any] | None:
            host: dict[str, Any] = (await docker.api.call("GET", f"/containers/{found['Id']}/json"))[
                "HostConfig"
            ]
            return host if host["PidsLimit"] else None

        host = await eventually(limited, what="a limit of processes")
        assert host["PidsLimit"] == 200
        assert host["Memory"] == host["MemorySwap"] == 512 * 1024 * 1024
        assert host["CpuQuota"] == 2 * host["CpuPeriod"]
        assert host["CpuShares"] == CPU_WEIGHT
        assert host["NetworkMode"] == docker.builder.network
        assert not host["Privileged"]
        assert not host["Binds"]
    finally:
        building.cancel()
        await asyncio.gather(building, return_exceptions=True)


async def test_builds_do_not_see_each_other(docker: DockerHands) -> None:
    listen = "use IO::Socket::INET; IO::Socket::INET->new(LocalPort => 8000, Listen => 5)->accept while 1"
    made = await docker.api.call(
        "POST",
        "/containers/create",
        body={
            "Image": BASE,
            "Cmd": ["perl", "-e", listen],
            "HostConfig": {"NetworkMode": docker.builder.network},
        },
    )
    try:
        await docker.api.call("POST", f"/containers/{made['Id']}/start")
        found = await docker.api.call("GET", f"/containers/{made['Id']}/json")
        address = found["NetworkSettings"]["Networks"][docker.builder.network]["IPAddress"]

        async def listening() -> bool:
            try:
                _, writer = await asyncio.open_connection(address, 8000)
            except OSError:
                return False
            writer.close()
            return True

        await eventually(listening, what="the neighbour")
        connect = f"IO::Socket::INET->new(PeerAddr => q({address}:8000), Timeout => 1) and die qq(seen\\n)"
        said = Said()
        await build(docker, f"RUN perl -MIO::Socket::INET -e '{connect}' # {made['Id']}", said=said)
        assert not said.of("stderr")
    finally:
        await docker.api.call("DELETE", f"/containers/{made['Id']}", {"force": True})


async def test_too_much_memory_and_too_many_processes_end_a_step(docker: DockerHands) -> None:
    with pytest.raises(StepFailed) as failed:
        await build(docker, "RUN perl -e '$x = \"a\" x (900 * 1024 * 1024); print length $x'")
    assert failed.value.exit_code == 137
    said = Said()
    many = "for (1..1000) { $p = fork // die qq(forked $_: $!\\n); sleep 9, exit if !$p }"
    with pytest.raises(StepFailed):
        await build(docker, f"RUN sleep 0.5; perl -e '{many}'", said=said)
    assert any("Resource temporarily unavailable" in line for line in said.of("stderr"))


async def test_the_image_has_its_name_and_no_trace_of_the_build(docker: DockerHands) -> None:
    order = new_order()
    image = await docker.builder.build(
        order, context({"Dockerfile": f"FROM {BASE}\nRUN echo x\n"}), "Dockerfile", (BASE,), Said()
    )
    found = await docker.api.call("GET", f"/images/{image.id}/json")
    assert not found["Config"]["Labels"]
    assert found["RepoTags"] == [f"{PREFIX}/{order.workload}:{order.deployment}"]


async def test_the_layer_cache_is_used(docker: DockerHands) -> None:
    slow, app = f"RUN sleep 1.5 && echo {time.time_ns()}", new_order().workload
    await build(docker, slow, workload=app)
    begun = time.monotonic()
    said = Said()
    await build(docker, slow, said=said, workload=app)
    assert time.monotonic() - begun < 1
    assert said.of("platform").count("Using cache") == 1


@pytest.mark.promise("U12")
async def test_no_layer_comes_from_another_apps_cache_or_one_that_was_cleared(docker: DockerHands) -> None:
    secret = f"RUN head -c 9 /dev/urandom | base64 | tee /secret; true {time.time_ns()}"
    app = new_order().workload

    async def made(**changes: Any) -> list[str]:
        said = Said()
        await build(docker, secret, "RUN cat /secret", said=said, **changes)
        return said.of("stdout")

    first = await made(workload=app)
    assert len(first) == 2
    assert await made(workload=app) == []
    for changes in ({}, {"workload": app, "cache": f"{app}.1"}, {"workload": app, "cache": None}):
        assert not set(await made(**changes)) & set(first)
    # Nor does who names another's cache by himself: his own is named before.
    said = Said()
    await build(docker, f"ARG BERTH_CACHE={app}.0", secret, "RUN cat /secret", said=said)
    assert said.of("stdout")
    assert not set(said.of("stdout")) & set(first)


async def test_the_mark_of_a_cache_is_not_in_the_way(docker: DockerHands) -> None:
    text = (
        f"ARG base={BASE}\nFROM \\\n  $base AS one\nRUN echo one\nfrom one AS two\nRUN echo two\n"
        "FROM scratch\nCOPY --from=two /etc/hostname /\nCOPY Dockerfile /"
    )
    said = Said()
    image = await docker.builder.build(
        new_order(), context({"Dockerfile": text}), "./Dockerfile", (BASE,), said
    )
    steps = [text.partition(" :")[0] for text in said.of("platform") if text.startswith("Step")]
    assert steps == [f"Step {number}/8" for number in range(1, 9)]
    assert said.of("stdout") == ["one", "two"]
    assert not any("BERTH_CACHE" in text for _, text in said.lines)
    found = await docker.api.call("GET", f"/images/{image.id}/json")
    assert not any("BERTH_CACHE" in variable for variable in found["Config"]["Env"] or ())


async def test_an_app_cannot_be_built_on_anothers_image(docker: DockerHands) -> None:
    stranger = new_order()
    await build(docker, "RUN echo secret", workload=stranger.workload, deployment=stranger.deployment)
    base = f"{PREFIX}/{stranger.workload}:{stranger.deployment}"
    with pytest.raises(StepFailed, match="an app's own"):
        await docker.builder.build(
            new_order(), context({"Dockerfile": f"FROM {base}\n"}), "Dockerfile", (base,), Said()
        )


MANY_VOLUMES = "VOLUME " + " ".join(f"/volumes{'/v' * number}" for number in range(9))


async def test_an_image_of_many_volumes_is_refused(docker: DockerHands) -> None:
    """Each would be a copy of what is below it, made with every instance and counted too late."""
    with pytest.raises(StepFailed, match="declares 9 volumes"):
        await build(docker, MANY_VOLUMES)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ONBUILD COPY --from=nginx:1 / /", "copies from further images"),
        (MANY_VOLUMES, "declares 9 volumes"),
    ],
)
async def test_a_base_image_with_too_much_in_it_is_refused(
    docker: DockerHands, line: str, words: str
) -> None:
    base = f"{PREFIX}/trigger:1"
    text = f"FROM {BASE}\n{line}\n"
    output = BuildOutput()
    made = tar_of(context({"Dockerfile": text}))
    async with docker.api.stream("POST", "/build", {"t": base}, made) as chunks:
        async for chunk in chunks:
            list(output.feed(chunk))
    try:
        with pytest.raises(StepFailed, match=words):
            await docker.builder.build(
                new_order(), context({"Dockerfile": f"FROM {base}\n"}), "Dockerfile", (base,), Said()
            )
    finally:
        await docker.api.call("DELETE", f"/images/{base}")


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ("berth/nothing:1", "the platform has no image"),
        ("127.0.0.1:5000/x:1", "private address"),
        ("localhost/x:1", "private address"),
        ("169.254.169.254/x", "private address"),
        ("nowhere.invalid/x", "does not exist"),
    ],
)
async def test_base_images_that_are_never_pulled(docker: DockerHands, base: str, words: str) -> None:
    with pytest.raises(StepFailed, match=words):
        await docker.builder.build(
            new_order(), context({"Dockerfile": f"FROM {base}\n"}), "Dockerfile", (base,), Said()
        )


async def test_the_image_of_a_container_stays(docker: DockerHands) -> None:
    order = new_order()
    image = await docker.builder.build(
        order, context({"Dockerfile": f'FROM {BASE}\nCMD ["sleep", "60"]\n'}), "Dockerfile", (BASE,), Said()
    )
    made = await docker.api.call(
        "POST", "/containers/create", body={"Image": image.id, "HostConfig": {"NetworkMode": "none"}}
    )
    try:
        await docker.api.call("POST", f"/containers/{made['Id']}/start")
        [kept] = [found for found in await docker.builder.images() if found.id == image.id]
        assert not await docker.builder.remove(kept)
        assert image.id in {found.id for found in await docker.builder.images()}
    finally:
        await docker.api.call("DELETE", f"/containers/{made['Id']}", {"force": True})


async def test_forgets_only_what_is_cache(docker: DockerHands) -> None:
    docker.builder.layers()
    with pytest.raises(StepFailed):
        await build(docker, f"RUN echo {time.time_ns()}", "RUN exit 1")
    new = [layer for layer in docker.builder.layers() if await docker.builder.forget(layer)]
    assert new
    # Images with a name and images of apps are not for this to remove, whoever named them.
    base = await docker.api.call("GET", f"/images/{BASE}/json")
    assert await docker.builder.forget(base["Id"][7:19])
    image = await build(docker, "RUN echo app")
    assert await docker.builder.forget(image.id[7:19])
    await docker.api.call("GET", f"/images/{BASE}/json")
    await docker.api.call("GET", f"/images/{image.id}/json")


@pytest.mark.parametrize("login", [None, "builder:a-password"])
async def test_publishes_to_a_registry(docker: DockerHands, login: str | None) -> None:
    with push_registry(login) as registry:
        user, _, password = (login or "").partition(":")
        known = RegistryLogin(host=registry.address, user=user, password=password) if user else None
        builder = docker_builder(registry=OwnRegistry(registry.address, SystemClock(), login=known))
        order = new_order()
        image = await builder.build(
            order, context({"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}), "Dockerfile", (), Said()
        )
        published = await builder.publish(order, image, Said())
        name = f"{registry.address}/{order.organization}/{order.workload}"
        assert published.reference == f"{name}@{published.digest}"
        assert (
            registry.manifests[(f"{order.organization}/{order.workload}", order.deployment)]
            == published.digest
        )
        [kept] = [found for found in await builder.images() if found.deployment == order.deployment]
        assert published.reference in kept.digests
        assert await builder.remove(kept)
        assert not [found for found in await builder.images() if found.deployment == order.deployment]


@pytest.mark.parametrize("ref", ["main", "v1", None, "commit"])
async def test_fetches_a_branch_a_tag_and_a_commit(docker: DockerHands, ref: str | None) -> None:
    name = f"refs-{ref}"
    commit = docker.server.repository(
        name,
        {"a.txt": "1", ".gitattributes": "a.txt export-ignore\n", "d/b.txt": "2"},
        {"link": "a.txt"},
    )
    tree = io.BytesIO()
    asked = docker.at(f"{name}.git", commit if ref == "commit" else ref)
    assert (await docker.builder.fetch(new_order(), asked, tree, Said())).commit == commit
    tree.seek(0)
    with tarfile.open(fileobj=tree) as tar:
        assert {m.name for m in tar if not m.isdir()} == {"a.txt", ".gitattributes", "d/b.txt", "link"}


async def test_an_address_without_git_at_its_end(docker: DockerHands) -> None:
    assert await docker.builder.fetch(new_order(), docker.at("app", "main"), io.BytesIO(), Said())


async def test_a_redirect_is_not_followed(docker: DockerHands) -> None:
    with pytest.raises(StepFailed) as failed:
        await docker.builder.fetch(new_order(), docker.at("moved/app.git", "main"), io.BytesIO(), Said())
    assert failed.value.step == "source"


async def test_a_branch_that_is_not_there(docker: DockerHands) -> None:
    with pytest.raises(StepFailed, match="couldn't find remote ref nope"):
        await docker.builder.fetch(new_order(), docker.at("app.git", "nope"), io.BytesIO(), Said())


async def test_a_repository_too_large(docker: DockerHands) -> None:
    docker.server.repository("large", {f"f{n}": f"{n}" * 3_000_000 for n in range(8)})
    with pytest.raises(StepFailed, match="larger than 20 MiB"):
        await docker.builder.fetch(new_order(), docker.at("large.git", "main"), io.BytesIO(), Said())


async def test_a_fetch_leaves_no_container(docker: DockerHands) -> None:
    order = new_order()
    await docker.builder.fetch(order, docker.repository, io.BytesIO(), Said())
    filters = {"label": [f"berth.build={order.build}"]}
    assert await docker.api.call("GET", "/containers/json", {"all": True, "filters": filters}) == []


async def test_another_attempts_containers_are_discarded(docker: DockerHands) -> None:
    order = new_order()
    labels = {"berth.prefix": PREFIX, "berth.build": order.build, "berth.attempt": "the-dead-one"}
    await docker.api.call(
        "POST",
        "/containers/create",
        body={
            "Image": BASE,
            "Cmd": ["true"],
            "Labels": labels,
            "HostConfig": {"NetworkMode": docker.builder.network},
        },
    )
    filters = {"label": [f"berth.build={order.build}"]}
    await docker.builder.discard(order.build, but="the-dead-one")
    assert len(await docker.api.call("GET", "/containers/json", {"all": True, "filters": filters})) == 1
    await docker.builder.discard(order.build, but=order.attempt)
    assert await docker.api.call("GET", "/containers/json", {"all": True, "filters": filters}) == []


async def test_no_log_in_of_the_operator_goes_along(
    docker: DockerHands, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A registry that would need one answers a customer's FROM with a refusal."""
    folder = tmp_path_factory.mktemp("operator")
    with push_registry(login="operator:secret") as registry:
        (folder / "config.json").write_text(
            f'{{"auths": {{"{registry.address}": {{"auth": "b3BlcmF0b3I6c2VjcmV0"}}}}}}'
        )
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
        text = f"FROM {registry.address}/private/image:1\n"
        with pytest.raises((StepFailed, Exception)) as failed:
            await docker.builder.build(new_order(), context({"Dockerfile": text}), "Dockerfile", (), Said())
        assert "unauthorized" in str(failed.value) or "no basic auth" in str(failed.value)
        assert registry.asked
        assert not registry.logged_in


async def test_the_network_goes_when_the_last_builder_does(docker: DockerHands) -> None:
    builder = docker_builder(prefix="bldgone")
    try:
        await builder.ensure_network()
        await builder.ensure_network()
    finally:
        await builder.close()
        await builder.close()
    with pytest.raises(Refused, match="not found"):
        await docker.api.call("GET", f"/networks/{builder.network}")
