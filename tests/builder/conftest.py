import pytest

from tests.builder.gateway import Gateway
from tests.harness import Harness
from tests.ports.fake_image_builder import FakeImageBuilder


@pytest.fixture
async def gateway(harness: Harness) -> Gateway:
    return await Gateway(harness).open()


@pytest.fixture
def images() -> FakeImageBuilder:
    return FakeImageBuilder()
