"""A builder image of Cloud Native Buildpacks and its run image, made for a test and taken away after it."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.build_output import BuildOutput
from builder.engine_api import EngineApi, tar_of

from tests.ports.image_builders import URL, context

FILES = Path(__file__).parent / "cnb_builder"


@dataclass(frozen=True, slots=True)
class CnbImages:
    builder: str
    run: str


@asynccontextmanager
async def cnb_images(place: str) -> AsyncIterator[CnbImages]:
    """`place` keeps one test's images apart from another's."""
    api, images = EngineApi(URL), CnbImages(f"{place}/builder:1", f"{place}/run:1")
    spoken = {"platform": {"deprecated": [], "supported": ["0.11", "0.12", "0.13"]}}
    metadata = {"stack": {"runImage": {"image": images.run}}, "lifecycle": {"apis": spoken}}
    await _make(api, images.run, "run", {})
    await _make(api, images.builder, "builder", {"io.buildpacks.builder.metadata": json.dumps(metadata)})
    try:
        yield images
    finally:
        for image in (images.builder, images.run):
            await api.call("DELETE", f"/images/{image}", {"force": True})


async def _make(api: EngineApi, name: str, stage: str, labels: Mapping[str, str]) -> None:
    files = {path.name: path.read_text() for path in FILES.iterdir()}
    output = BuildOutput()
    query = {"t": name, "target": stage, "labels": dict(labels), "rm": True}
    async with api.stream("POST", "/build", query, tar_of(context(files))) as chunks:
        async for chunk in chunks:
            list(output.feed(chunk))
    assert output.error is None, output.error
