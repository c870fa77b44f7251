"""An app made by buildpacks of the classic kind: fetched, run one after another in a sandbox, and packed.

A buildpack is a stranger's program: it runs with the app's rights and nothing else, as the organization's own
user, and what it leaves below `/app` becomes a layer on the stack's image. Called by a build.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Sequence
from typing import BinaryIO

from contracts.buildpack import Buildpack

from builder import buildpacks, image_archive, procfile, repository
from builder.buildpacks import BELOW, Classic
from builder.image_builder import Setup, StepFailed
from builder.material import Material, Pack, Product, text_of

_CA = f"{BELOW}/ca.pem"
_TOLD = f"{BELOW}/told"
_LARGEST_TEXT = 256 * 1024


async def make(plan: Classic, material: Material) -> Product:
    say = material.say("build")
    with contextlib.ExitStack() as files:
        fetched = [files.enter_context(tempfile.TemporaryFile()) for _ in plan.buildpacks]
        for buildpack, into in zip(plan.buildpacks, fetched, strict=True):
            await _fetch(buildpack, material, into)
        base = await material.images.find(material.order, plan.image, say, trusted=True)
        packed = files.enter_context(tempfile.TemporaryFile())
        await asyncio.to_thread(_pack, material, fetched, packed)
        places = [f"{BELOW}/buildpacks/{number}" for number in range(1, len(fetched) + 1)]
        setup = Setup(
            image=await material.images.find(material.order, plan.build_image, say, trusted=True),
            command=("/bin/bash", f"{BELOW}/compile", _TOLD, *places),
            user=material.uid,
            group=material.uid,
            environment=buildpacks.environment(
                plan.stack, material.order.build, material.commit, _CA if material.ca_bundle else None
            ),
            cache="buildpacks",
        )
        app = files.enter_context(tempfile.TemporaryFile())
        async with material.images.workshop(material.order, setup) as shop:
            await shop.put(packed)
            code = await shop.work(say)
            if code != 0:
                told = await text_of(shop, f"{_TOLD}/failed", _LARGEST_TEXT) or b""
                raise buildpacks.failure(told.decode(errors="replace"), code, plan.buildpacks)
            said = await text_of(shop, f"{_TOLD}/release", buildpacks.LARGEST_RELEASE) or b""
            listed = await text_of(shop, f"{buildpacks.APP}/Procfile", _LARGEST_TEXT) or b""
            await shop.take(buildpacks.APP, app, material.largest)
        release = buildpacks.release(said.decode(errors="replace"))
        processes = buildpacks.processes(release, procfile.parse(listed.decode(errors="replace")), plan.start)
        for name, command in processes.items():
            await say("platform", f"Process {name}: {command}")
        archive = files.enter_context(tempfile.TemporaryFile())
        config = buildpacks.config(
            base.config, plan.stack, material.uid, release.variables, processes.get("web")
        )
        launcher = image_archive.files({buildpacks.LAUNCH[1:]: (buildpacks.LAUNCHER.encode(), 0o755)})
        layers = [await asyncio.to_thread(image_archive.layer, file) for file in (launcher, app)]
        image = await asyncio.to_thread(image_archive.write, base, layers, config, archive)
        built = await material.images.load(material.order, archive, image, ())
    return Product(built, {name: buildpacks.launched(command) for name, command in processes.items()})


async def _fetch(buildpack: Buildpack, material: Material, into: BinaryIO) -> None:
    say = material.say("build")
    await say("platform", f"Fetching the buildpack {buildpack.name}")
    try:
        checked = await repository.check(buildpack.url, buildpack.ref, allow_private=material.allow_private)
        fetched = await material.images.fetch(material.order, checked, into, say)
    except StepFailed as error:
        raise StepFailed(
            "build", f"the buildpack {buildpack.name}: {error.message}", exit_code=error.exit_code
        ) from error
    await say("platform", f"Commit {fetched.commit} of {buildpack.url}")


def _pack(material: Material, fetched: Sequence[BinaryIO], into: BinaryIO) -> None:
    pack = Pack(into, material.uid, material.uid)
    for folder in (BELOW, _TOLD, f"{BELOW}/env", f"{BELOW}/buildpacks", buildpacks.CACHE, buildpacks.APP):
        pack.folder(folder)
    pack.file(f"{BELOW}/compile", buildpacks.SCRIPT.encode(), 0o755)
    for name, value in material.variables.items():
        pack.file(f"{BELOW}/env/{name}", value.encode(), 0o600)
    if material.ca_bundle is not None:
        pack.file(_CA, material.ca_bundle)
    for number, archive in enumerate(fetched, 1):
        pack.tree(f"{BELOW}/buildpacks/{number}", archive, material.limits_of_git)
    pack.tree(buildpacks.BUILD, material.source, material.limits, material.survey.root)
    pack.close()
