"""The platform's registry, the real program: who gets in, with what, and what is gone when it was removed."""

import os
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import pytest
from builder.own_registry import OwnRegistry
from contracts.errors import ProviderFailed
from contracts.ids import new_id
from docker.errors import APIError
from embedded.compose import LOCAL
from embedded.images import Images, trusted
from runtime.clock import SystemClock
from runtime.registry_key import ISSUER, SERVICE, Action, RegistryKey

from tests.harness import eventually, free_port
from tests.ports.image_builders import Said, clear, context, docker_builder, new_order
from tests.ports.test_images_from_elsewhere import API

ROOT = Path(__file__).parents[2]
KEY = RegistryKey("a key of the tests, made for nobody else")
PREFIX = "bldown"


@pytest.fixture(scope="module")
def image(engine: None) -> str:
    tag, recipe = LOCAL["BERTH_REGISTRY_IMAGE"]
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    with closing(Images(host, ROOT / ".cache" / "images", print, ca_bundle=trusted())) as images:
        images.ensure_image(tag, images.recipe(recipe), images.ensure_base())
    return tag


@pytest.fixture(scope="module")
def address(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    certificate = tmp_path_factory.mktemp("registry") / "registry.pem"
    certificate.write_bytes(KEY.certificate())
    certificate.chmod(0o644)
    client, port = docker.from_env(), free_port()
    container = client.containers.run(
        image,
        detach=True,
        environment={
            "REGISTRY_HTTP_SECRET": "of the tests",
            "REGISTRY_AUTH": "token",
            "REGISTRY_AUTH_TOKEN_REALM": "https://registry.invalid/token",
            "REGISTRY_AUTH_TOKEN_SERVICE": SERVICE,
            "REGISTRY_AUTH_TOKEN_ISSUER": ISSUER,
            "REGISTRY_AUTH_TOKEN_ROOTCERTBUNDLE": "/run/registry.pem",
        },
        volumes=[f"{certificate}:/run/registry.pem:ro"],
        ports={"5000/tcp": ("127.0.0.1", port)},
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        container.remove(force=True, v=True)
        client.close()


def pull(reference: str, repository: str, *actions: Action, at: datetime | None = None) -> None:
    """As a node does it, with a token for this repository."""
    token = KEY.token("node-n1", repository, actions, at or datetime.now(UTC))
    client = docker.APIClient()
    try:
        for line in client.pull(reference, auth_config={"registrytoken": token}, stream=True, decode=True):
            if "error" in line:
                raise APIError(line["error"])
    finally:
        client.close()


@pytest.mark.promise("P9")
async def test_who_may_read_write_and_remove_an_image(address: str) -> None:
    registry = OwnRegistry(address, SystemClock(), key=KEY)
    builder = docker_builder(PREFIX, registry=registry)
    await clear(builder, API)
    order = new_order()
    try:
        files = {"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}
        made = await builder.build(order, context(files), "Dockerfile", (), Said())

        async def published() -> Any:
            try:
                return await builder.publish(order, made, Said())
            except ProviderFailed:
                return None  # it is just starting

        reference = (await eventually(published, what="the registry", every=0.2)).reference
        repository = f"{order.organization}/{order.workload}"
        assert reference.startswith(f"{address}/{repository}@sha256:")
        for kept in await builder.images():
            assert await builder.remove(kept)

        # Nobody, a neighbour, one whose time is over, and one who was let in for something else.
        name = f"{address}/{repository}:{order.deployment}"
        late = datetime.now(UTC) - timedelta(hours=1)
        for refused in (
            lambda: docker.from_env().images.pull(name),
            lambda: pull(name, f"{order.organization}/{new_id('app')}", "pull"),
            lambda: pull(name, f"{new_id('org')}/{order.workload}", "pull"),
            lambda: pull(name, repository, "pull", at=late),
            lambda: pull(name, repository, "push"),
        ):
            with pytest.raises(APIError):
                refused()
        stranger = OwnRegistry(address, SystemClock(), key=RegistryKey("guessed"))
        with pytest.raises(ProviderFailed, match="401"):
            await stranger.remove(reference)
        pull(reference, repository, "pull")
        await API.call("DELETE", f"/images/{reference}")

        await builder.withdraw(reference)
        await builder.withdraw(reference)
        with pytest.raises(APIError, match=r"not found|unknown"):
            pull(name, repository, "pull")
    finally:
        await clear(builder, API)
