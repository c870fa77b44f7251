"""Images on their way from and to registries, by the engine.

Invariant: what an app is made of is what the registry gives for this app's log-in now, by its digest. It gets
the app's name on the engine and keeps no other: what one customer may read, another could build on by name.
"""

import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from contracts import image_reference
from contracts.credentials import RegistryLogin
from contracts.errors import InvalidInput, ProviderFailed
from contracts.image_reference import HUB, ImageReference

from builder import registry_address
from builder.build_output import BuildOutput
from builder.dockerfile import MOST_VOLUMES
from builder.engine_api import EngineApi, Refused
from builder.hints import is_ours
from builder.image_builder import BuiltImage, Say, Step, StepFailed

MIB = 1024 * 1024
CHECK_NAME = "Check its name and tag; for a private one, PUT …/credentials/registry sets a log-in."
# Images of the platform itself, made on the engine and never pulled.
OWN = "berth/"
_APPS_NAME = re.compile(r"(^|/)app_[0-9a-z]{26}([:@]|$)")


@dataclass(frozen=True, slots=True)
class Registries:
    api: EngineApi
    # The platform's; none: the engine is where images stay.
    own: str | None
    allow_private: bool

    async def pull(
        self,
        reference: ImageReference,
        login: RegistryLogin | None,
        name: tuple[str, str],
        say: Say,
        *,
        largest: int,
    ) -> BuiltImage:
        """`name`: repository and tag it is to have here."""
        known = str(reference).removeprefix(f"{HUB}/")
        if known.startswith((OWN, f"{self.own or OWN}/")) or is_an_apps(known):
            raise StepFailed("source", f"the image {reference} is the platform's own")
        try:
            await self._require_public(reference.host)
        except InvalidInput as error:
            raise StepFailed("source", f"the image {reference}: {error.message}") from error
        if login is not None and login.host != reference.host:
            login = None
        # Also of one that is named by it: what is here by another's log-in, the engine gives without asking.
        digest = await self._digest(reference, login)
        pinned = f"{reference.repository}@{digest}"
        await say("platform", f"{reference} is {digest}")
        try:
            was_here = await found_image(self.api, pinned) is not None
            await self._take(reference.repository, digest, login, largest)
            await say("platform", f"Pulled {reference}.")
            found = await found_image(self.api, pinned)
            if found is None:
                raise ProviderFailed(f"the image {pinned} went away")
            await self.api.call("POST", f"/images/{found['Id']}/tag", {"repo": name[0], "tag": name[1]})
            if not was_here:
                await self.api.call("DELETE", f"/images/{quote(pinned)}")
        except Refused as error:
            raise _failed(reference, error.words, login) from error
        refusal = _too_large(largest) if found["Size"] > largest else too_many_volumes(found, "source")
        if refusal is not None:
            await self.api.call("DELETE", f"/images/{name[0]}:{name[1]}")
            raise refusal
        ports = {int(port.partition("/")[0]) for port in found["Config"].get("ExposedPorts") or {}}
        return BuiltImage(found["Id"], found["Size"], tuple(sorted(ports)))

    async def push(
        self, image: BuiltImage, repository: str, tag: str, opened: list[tuple[str, str]], say: Say
    ) -> str:
        """The digest it has there. `opened`: by what header."""
        await self.api.call("POST", f"/images/{image.id}/tag", {"repo": repository, "tag": tag})
        await say("platform", f"Pushing {repository}:{tag}")
        output, digest = BuildOutput(), None
        path, query = f"/images/{repository}/push", {"tag": tag}
        async with self.api.stream("POST", path, query, headers=opened) as chunks:
            async for chunk in chunks:
                for _ in output.feed(chunk):
                    continue
                digest = output.digest or digest
        if output.error is not None or digest is None:
            raise ProviderFailed(f"the image could not be pushed: {output.error or 'no digest came back'}")
        return digest

    async def _require_public(self, registry: str) -> None:
        if registry != HUB and not self.allow_private:
            await registry_address.require_public(registry)

    async def _digest(self, reference: ImageReference, login: RegistryLogin | None) -> str:
        try:
            async with self.api.stream(
                "GET", f"/distribution/{quote(str(reference))}/json", headers=_header(login)
            ) as chunks:
                found = json.loads(b"".join([chunk async for chunk in chunks]))
        except Refused as error:
            raise _failed(reference, error.words, login) from error
        return str(found["Descriptor"]["digest"])

    async def _take(self, repository: str, digest: str, login: RegistryLogin | None, largest: int) -> None:
        query = {"fromImage": repository, "tag": digest}
        sizes: dict[str, int] = {}
        async with self.api.stream("POST", "/images/create", query, headers=_header(login)) as chunks:
            async for message in _messages(chunks):
                if "error" in message:
                    raise _failed(repository, str(message["error"]), login)
                progress = message.get("progressDetail") or {}
                layer = str(message.get("id"))
                sizes[layer] = max(sizes.get(layer, 0), int(progress.get("total") or 0))
                if sum(sizes.values()) > largest:
                    # Leaving the block ends the pull.
                    raise _too_large(largest)

    async def pull_base(self, base: str, say: Say, *, trusted: bool) -> None:
        try:
            if not trusted:
                await self._require_public(image_reference.parse(base).host)
        except InvalidInput as error:
            raise StepFailed("build", f"the base image {base}: {error.message}") from error
        await say("platform", f"Pulling {base}")
        if "@" in base:
            # What is here by another's log-in, the engine would give without asking the registry.
            try:
                await self._digest(image_reference.parse(base), None)
            except (InvalidInput, StepFailed) as error:
                raise StepFailed("build", f"the base image {base}: {error.message}") from error
        name, tag = (base, "") if "@" in base or ":" in base.rpartition("/")[2] else (base, "latest")
        output = BuildOutput()
        query = {"fromImage": name, "tag": tag or None}
        async with self.api.stream("POST", "/images/create", query) as chunks:
            async for chunk in chunks:
                for stream, text in output.feed(chunk):
                    await say(stream, text)
        if output.error is not None:
            if is_ours(output.error):
                raise ProviderFailed(f"{base} could not be pulled: {output.error}")
            raise StepFailed("build", f"the base image {base} could not be pulled: {output.error}")


async def found_image(api: EngineApi, name: str) -> dict[str, Any] | None:
    """What the engine has under this name, or with this id."""
    try:
        found: dict[str, Any] = await api.call("GET", f"/images/{quote(name)}/json")
    except Refused as error:
        if error.status == 404:
            return None
        raise
    return found


def too_many_volumes(found: dict[str, Any], step: Step) -> StepFailed | None:
    count = len(found["Config"].get("Volumes") or ())
    if count <= MOST_VOLUMES:
        return None
    return StepFailed(step, f"the image declares {count} volumes (VOLUME); at most {MOST_VOLUMES} are taken")


def is_an_apps(name: str) -> bool:
    """By its name alone: an image from elsewhere that an app is made of stays everybody's to build on."""
    return _APPS_NAME.search(name) is not None


async def _messages(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


def _header(login: RegistryLogin | None) -> list[tuple[str, str]]:
    said = {}
    if login is not None:
        said = {"username": login.user, "password": login.password, "serveraddress": login.host}
    return [("X-Registry-Auth", base64.urlsafe_b64encode(json.dumps(said).encode()).decode())]


def _too_large(largest: int) -> StepFailed:
    return StepFailed("source", f"the image is larger than {largest // MIB} MiB")


def _failed(reference: ImageReference | str, words: str, login: RegistryLogin | None) -> Exception:
    if is_ours(words):
        return ProviderFailed(f"{reference} could not be pulled: {words}")
    hint = CHECK_NAME
    if login is not None:
        hint = "Check its name and tag, and the log-in that PUT …/credentials/registry sets."
    return StepFailed("source", f"the image {reference} could not be pulled: {words}", hint=hint)
