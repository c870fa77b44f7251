"""The engines and the proxy, each started once for the whole run."""

from collections.abc import AsyncIterator

import pytest

from tests.ports.engines import DockerHands, FakeHands, Hands, docker_hands


@pytest.fixture(scope="session")
async def docker() -> AsyncIterator[DockerHands]:
    async with docker_hands() as hands:
        yield hands


@pytest.fixture(params=["fake", "docker"])
async def hands(request: pytest.FixtureRequest, docker: DockerHands) -> AsyncIterator[Hands]:
    if request.param == "docker":
        yield docker
        for instance in await docker.engine.instances():
            await docker.engine.remove(instance.identity.instance)
    else:
        fake = FakeHands()
        yield fake
        await fake.engine.end()
