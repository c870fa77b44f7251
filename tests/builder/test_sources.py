"""What a build is made of: credentials on their way, submodules, images, Dockerfiles without a repository."""

import io
import zipfile
from typing import Any

import pytest
from builder.image_builder import Submodule
from contracts.credentials import DeployKey, GitToken, RegistryLogin
from contracts.errors import ProviderFailed
from contracts.events import BuildFinished, DeploymentRequested
from contracts.workload import (
    BuildFailed,
    BuildSettings,
    BuildSucceeded,
    DockerfileSource,
    GitSource,
    ImageSource,
    RuntimePreset,
)

from tests.builder.gateway import Gateway
from tests.ports.fake_image_builder import FakeImageBuilder

URL = "http://127.0.0.1/shop/app.git"
DOCKERFILE = "FROM berth/base:bookworm\nRUN echo hello\n"
SECRET = "a-token-nobody-may-see"


@pytest.fixture
async def build(gateway: Gateway, images: FakeImageBuilder) -> Any:
    await gateway.builder(images, allow_private_git=True)
    images.repositories[URL] = {"Dockerfile": DOCKERFILE}

    async def built(request: DeploymentRequested) -> BuildFinished:
        await gateway.harness.publish(request)
        return await gateway.finished(request)

    return built


async def test_a_commit_is_told_with_its_author(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    request = gateway.request(GitSource(url=URL))
    result = (await build(request)).result
    assert isinstance(result, BuildSucceeded)
    assert (result.commit_author, result.commit_message) == ("Tests", "first")
    assert any("by Tests: first" in line.text for line in await gateway.log(request))
    # Of a build that failed, too.
    images.repositories[URL] = {"Dockerfile": "FROM berth/base:bookworm\nRUN exit 3\n"}
    failed = (await build(gateway.request(GitSource(url=URL)))).result
    assert isinstance(failed, BuildFailed)
    assert failed.commit is not None
    assert failed.commit_author == "Tests"


async def test_credentials_reach_the_fetch_and_nothing_else(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    url = "https://127.0.0.1/shop/app.git"
    images.repositories[url] = {"Dockerfile": f"FROM berth/base:bookworm\nRUN echo {SECRET}\n"}
    request = gateway.request(GitSource(url=url))
    token = GitToken(host="127.0.0.1", user="oauth2", token=SECRET)
    gateway.credentials[request.workload] = {"git": token}
    finished = await build(request)
    assert images.fetched[-1].credential == token
    log = await gateway.log(request)
    assert SECRET not in repr(log)
    assert SECRET not in finished.model_dump_json() + request.model_dump_json()
    assert SECRET not in repr(images.fetched)
    # The app's own log-in for a registry is none for a repository, and another app has none at all.
    other = gateway.request(GitSource(url=url))
    await build(other)
    assert images.fetched[-1].credential is None


async def test_submodules_are_fetched_where_they_belong(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    commit = "1" * 40
    url = "ssh://git@127.0.0.1/shop/app.git"
    images.repositories |= {
        url: {"Dockerfile": DOCKERFILE, "app.py": "1"},
        "ssh://git@127.0.0.1/shop/lib.git": {"lib.py": "2", "deep/x": "x"},
        "ssh://git@127.0.0.1/shop/inner": {"inner.py": "3"},
    }
    images.submodules = {
        url: (Submodule("vendor/lib", commit, "../lib.git"),),
        "ssh://git@127.0.0.1/shop/lib.git": (Submodule("below", commit, "../inner"),),
    }
    request = gateway.request(GitSource(url=url, submodules=True))
    key = DeployKey(private_key="-----BEGIN OPENSSH PRIVATE KEY-----")
    gateway.credentials[request.workload] = {"git": key}
    result = (await build(request)).result
    assert isinstance(result, BuildSucceeded), result
    assert [found.ref for found in images.fetched] == [None, commit, commit]
    assert all(found.credential == key for found in images.fetched)
    texts = [line.text for line in await gateway.log(request)]
    assert "Fetching the submodule vendor/lib/below: ssh://********@127.0.0.1/shop/inner" in texts
    assert any(text.startswith("The source has 5 files") for text in texts)
    # They are left out where they were not asked for.
    plain = gateway.request(GitSource(url=url))
    gateway.credentials[plain.workload] = {"git": key}
    await build(plain)
    assert any(
        text.startswith("The source has 2 files") for text in [x.text for x in await gateway.log(plain)]
    )


COMMIT = "1" * 40
FORBIDDEN = {
    Submodule("lib", COMMIT, "https://169.254.169.254/latest"): "private address",
    Submodule("lib", COMMIT, "https://localhost/x"): "private address",
    Submodule("lib", COMMIT, "../../../../../etc"): "must look like",
    Submodule("lib", COMMIT, "file:///etc"): "must look like",
    Submodule("lib", COMMIT, "ext::sh -c id"): "must look like",
    Submodule("lib", COMMIT, "http://1.1.1.1/x"): "must look like",
    Submodule("lib", COMMIT, "https://user:secret@1.1.1.1/x"): "user or password",
    Submodule("lib", "--upload-pack=id", "https://1.1.1.1/x"): "characters",
    Submodule("lib", COMMIT, "git@1.1.1.1:x/y.git"): "no deploy key",
    Submodule("lib", COMMIT, ""): "no url",
}


async def test_a_submodule_is_held_to_the_same_rules(gateway: Gateway, images: FakeImageBuilder) -> None:
    await gateway.builder(images)
    url = "https://1.1.1.1/shop/app.git"
    images.repositories[url] = {"Dockerfile": DOCKERFILE}
    for module, words in FORBIDDEN.items():
        images.submodules[url] = (module,)
        request = gateway.request(GitSource(url=url, submodules=True))
        await gateway.harness.publish(request)
        result = (await gateway.finished(request)).result
        assert isinstance(result, BuildFailed)
        assert result.step == "source"
        assert words in result.message
    assert {found.git.url for found in images.fetched} == {url}


async def test_submodules_without_end(build: Any, gateway: Gateway, images: FakeImageBuilder) -> None:
    images.submodules[URL] = (Submodule("again", "1" * 40, "../app.git"),)
    result = (await build(gateway.request(GitSource(url=URL, submodules=True)))).result
    assert isinstance(result, BuildFailed)
    assert "more than 50 submodules" in result.message


async def test_an_image_is_pulled_and_not_built(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    source = ImageSource(reference="ghcr.io/shop/app:2.0")
    request = gateway.request(source, build=BuildSettings(start_command="serve --all"))
    login = RegistryLogin(host="ghcr.io", user="shop", password=SECRET)
    gateway.credentials[request.workload] = {"registry": login}
    finished = await build(request)
    result = finished.result
    assert isinstance(result, BuildSucceeded)
    assert (result.recipe, result.port, result.processes) == ("image", 80, {"web": "serve --all"})
    assert result.size_bytes == 4096
    [(reference, told)] = images.pulled
    assert (str(reference), told) == ("ghcr.io/shop/app:2.0", login)
    assert images.builds == []
    assert SECRET not in repr(await gateway.log(request)) + finished.model_dump_json()


async def test_the_log_in_opens_what_is_built_on(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    """Where the Dockerfile names an image of that registry, and in no other build."""
    login = RegistryLogin(host="ghcr.io", user="shop", password=SECRET)
    for base, told in (("ghcr.io/shop/base:1", login), ("quay.io/shop/base:1", None), ("alpine:3", None)):
        request = gateway.upload({"Dockerfile": f"FROM {base}\nRUN echo hello\n"})
        gateway.credentials[request.workload] = {"registry": login}
        assert isinstance((await build(request)).result, BuildSucceeded)
        assert images.logins[-1] == told
        assert SECRET not in repr(await gateway.log(request))


async def test_the_log_in_opens_the_builder_image_that_the_app_names(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    """And not the one that the administrator offers to everybody."""
    login = RegistryLogin(host="ghcr.io", user="shop", password=SECRET)
    offered = RuntimePreset(name="offered", type="cnb", version="1", image="ghcr.io/shop/builder:1")
    for settings, told in (
        (BuildSettings(builder="ghcr.io/shop/builder:1"), login),
        (BuildSettings(builder="quay.io/shop/builder:1"), None),
        (BuildSettings(runtime="offered"), None),
    ):
        request = gateway.upload({"greeting.txt": "Hi\n"}, build=settings, runtimes=(offered,))
        gateway.credentials[request.workload] = {"registry": login}
        assert isinstance((await build(request)).result, BuildFailed)
        assert images.logins[-1] == told
        assert SECRET not in repr(await gateway.log(request))
    assert len(images.logins) == 3


async def test_a_registry_that_is_away_is_asked_again(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    images.fail_next("pull", ProviderFailed("the registry does not answer"))
    result = (await build(gateway.request(ImageSource(reference="nginx")))).result
    assert isinstance(result, BuildSucceeded)
    assert len(images.pulled) == 2


async def test_a_dockerfile_without_a_repository(
    build: Any, gateway: Gateway, images: FakeImageBuilder
) -> None:
    request = gateway.request(DockerfileSource(text="FROM berth/base:bookworm\nRUN echo from text"))
    result = (await build(request)).result
    assert isinstance(result, BuildSucceeded)
    assert result.recipe == "dockerfile"
    assert result.commit is None
    assert "from text" in [line.text for line in await gateway.log(request)]


async def test_a_zip_is_built(build: Any, gateway: Gateway) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("shop/Dockerfile", DOCKERFILE)
        archive.writestr("shop/app.py", "1")
    result = (await build(gateway.upload(made.getvalue()))).result
    assert isinstance(result, BuildSucceeded), result
