"""An app made by a builder image of Cloud Native Buildpacks: the lifecycle's `creator` runs in a sandbox,
without an engine, a registry or a right, and what it wrote is looked through and taken in.

Called by a build; what is said to the lifecycle and what is believed of it, `cnb.py` decides.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Mapping
from typing import BinaryIO

from builder import buildpacks, cnb, image_archive
from builder.cnb import Lifecycle
from builder.image_archive import Layer
from builder.image_builder import FoundImage, Setup, StepFailed, Workshop
from builder.material import Material, Pack, Product, text_of

_CA = f"{cnb.PLATFORM}/ca.pem"


async def make(plan: Lifecycle, material: Material, listed: Mapping[str, str]) -> Product:
    """`listed`: the Procfile, for what the builder's buildpacks do not know of."""
    say = material.say("build")
    image = await _find(plan.builder, plan, material)
    said = cnb.builder(plan.builder, image)
    await say("platform", f"The builder speaks platform API {said.api} and runs apps on {said.run_image}")
    run = await _find(said.run_image, plan, material)
    cnb.check_run_image(said, run)
    setup = Setup(
        image=image,
        command=cnb.arguments(said),
        user=said.uid,
        group=said.gid,
        environment=cnb.environment(said),
        cache="cnb",
    )
    with contextlib.ExitStack() as files:
        packed = files.enter_context(tempfile.TemporaryFile())
        await asyncio.to_thread(_pack, material, said, run, packed)
        async with material.images.workshop(material.order, setup) as shop:
            await shop.put(packed)
            code = await shop.work(say)
            if code != 0:
                raise cnb.failure(code)
            made = await _made(shop, run)
            layers: list[Layer] = []
            for blob in made.layers:
                into = files.enter_context(tempfile.TemporaryFile())
                left = material.largest - sum(layer.size for layer in layers)
                layers.append(await _layer(shop, blob, into, left))
        archive = files.enter_context(tempfile.TemporaryFile())
        loaded = await asyncio.to_thread(image_archive.write, run, layers, made.config, archive)
        built = await material.images.load(material.order, archive, loaded, made.ports)
    processes = cnb.processes(made, listed, plan.start)
    for name, command in processes.items():
        await say("platform", f"Process {name}: {command}")
    return Product(built, processes)


async def _find(name: str, plan: Lifecycle, material: Material) -> FoundImage:
    # What the administrator offers is everybody's: nobody's own log-in is used for it.
    login = None if plan.trusted else await material.login_for((name,))
    return await material.images.find(
        material.order, name, material.say("build"), trusted=plan.trusted, login=login
    )


async def _made(shop: Workshop, run: FoundImage) -> cnb.Made:
    folder = cnb.place(cnb.APP_IMAGE)
    index = await _small(shop, f"{folder}/index.json")
    digest = cnb.manifest_of(index)
    manifest = await _small(shop, cnb.blob(folder, digest))
    wanted = cnb.config_of(manifest, digest)
    config = await _small(shop, cnb.blob(folder, wanted))
    return cnb.made(manifest, config, wanted, run)


async def _small(shop: Workshop, path: str) -> bytes:
    data = await text_of(shop, path, cnb.LARGEST_TEXT)
    if data is None:
        raise StepFailed("image", f"the builder's lifecycle has written no {path}")
    return data


async def _layer(shop: Workshop, blob: cnb.Blob, into: BinaryIO, most: int) -> Layer:
    path = cnb.blob(cnb.place(cnb.APP_IMAGE), blob.digest)
    with tempfile.TemporaryFile() as wrapped:
        if not await shop.take(path, wrapped, most):
            raise StepFailed("image", f"the builder's lifecycle has written no layer {blob.digest}")

        def unpack() -> Layer:
            packed = image_archive.only_file(wrapped, blob.digest.removeprefix("sha256:"))
            return image_archive.unpacked(
                packed, blob.digest, blob.content, compressed=blob.compressed, into=into, most=most
            )

        return await asyncio.to_thread(unpack)


def _pack(material: Material, said: cnb.Builder, run: FoundImage, into: BinaryIO) -> None:
    pack = Pack(into, said.uid, said.gid)
    for folder in (cnb.LAYERS, cnb.PLATFORM, f"{cnb.PLATFORM}/env", cnb.CACHE, f"{cnb.CACHE}/layers"):
        pack.folder(folder)
    trusted = {}
    if material.ca_bundle is not None:
        pack.file(_CA, material.ca_bundle)
        trusted = buildpacks.trust(_CA)
    for name, value in {**trusted, **material.variables}.items():
        pack.file(f"{cnb.PLATFORM}/env/{name}", value.encode(), 0o600)
    pack.folder(cnb.LAYOUT)
    for path, data in cnb.shown(said.run_image, run).items():
        pack.file(path, data)
    pack.tree(cnb.APP, material.source, material.limits, material.survey.root)
    pack.close()
