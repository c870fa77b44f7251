"""The images a build stands on: whether its customer may have them, and that the engine has them.

What a customer's own log-in opens is no image of the engine's for everybody: it is pulled as the registry has
it now for this log-in, gets a name that only this build is given, and keeps no other.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from contracts import image_reference
from contracts.credentials import RegistryLogin
from contracts.errors import InvalidInput
from contracts.image_reference import HUB
from runtime.clock import Clock

from builder.dockerfile import triggers
from builder.engine_api import EngineApi, Refused
from builder.image_builder import Order, Say, StepFailed
from builder.registry import CHECK_NAME, MIB, OWN, Registries, found_image, is_an_apps, too_many_volumes

# How long a build waits for an image the platform is still making, and how often it looks.
_MAKING, _LOOK = 600.0, 1.0


@dataclass(frozen=True, slots=True)
class Bases:
    api: EngineApi
    clock: Clock
    registries: Registries
    prefix: str

    async def admit(self, base: str, say: Say, *, trusted: bool = False) -> bool:
        """A base the customer may build on, present in the engine when this returns: whether it triggers
        instructions of its own."""
        try:
            found = await found_image(self.api, base)
            if found is None and base.startswith(OWN):
                # Whoever has this name in a public registry is not us.
                found = await self._made(base, say)
            if found is None:
                await self.registries.pull_base(base, say, trusted=trusted)
                found = await found_image(self.api, base)
        except Refused as error:
            raise StepFailed(
                "build", f"the base image {base} cannot be had: {error.words}", hint=CHECK_NAME
            ) from error
        if is_an_apps(base):
            raise StepFailed("build", f"the base image {base} is an app's own and cannot be built on")
        if found is not None and (refusal := too_many_volumes(found, "build")) is not None:
            raise refusal
        return _triggering(base, found)

    async def private(
        self, order: Order, bases: Collection[str], login: RegistryLogin | None, say: Say
    ) -> tuple[Mapping[str, str], bool]:
        """Of `bases` those of the registry the log-in is for, by the name the build is to have in place of
        theirs; and whether one triggers instructions."""
        names: dict[str, str] = {}
        triggering = False
        for base in bases:
            if login is None or not opens(login, base):
                continue
            place = self._place(order, base)
            try:
                await self.registries.pull(
                    image_reference.parse(base), login, place, say, largest=order.disk_mb * MIB
                )
            except StepFailed as error:
                error.step = "build"
                raise
            names[base] = ":".join(place)
            triggering = _triggering(base, await found_image(self.api, names[base])) or triggering
        return names, triggering

    def _place(self, order: Order, base: str) -> tuple[str, str]:
        """A name and a tag for this build's own; those of one deployment differ."""
        return f"{self.prefix}/base/{order.workload}", f"{order.deployment}-{crc32(base.encode())}"

    async def making(self, own: str) -> bool:
        return await found_image(self.api, _making(own)) is not None

    async def _made(self, own: str, say: Say) -> dict[str, Any]:
        """An image of the platform itself, which may be in the making: then a name of its own says so."""
        deadline = self.clock.monotonic() + _MAKING
        if await self.making(own):
            await say("platform", f"Waiting for the platform's image {own}, which is being made.")
        while (found := await found_image(self.api, own)) is None:
            if not await self.making(own) or self.clock.monotonic() > deadline:
                raise StepFailed(
                    "build",
                    f"the platform has no image {own}",
                    hint="Its operator makes it with `berth images`, or gives the runtime another image.",
                )
            await self.clock.sleep(_LOOK)
        return found


def opens(login: RegistryLogin, base: str) -> bool:
    """Docker Hub's own images are everybody's, with a log-in there or without."""
    try:
        reference = image_reference.parse(base)
    except InvalidInput:
        return False
    everybodys = reference.host == HUB and reference.path.startswith("library/")
    return reference.host == login.host and not everybodys and not base.startswith(OWN)


def _triggering(base: str, found: dict[str, Any] | None) -> bool:
    triggered = (found or {}).get("Config", {}).get("OnBuild") or ()
    inherited = triggers(triggered)
    if inherited:
        raise StepFailed("build", f"the base image {base} copies from further images ({inherited[0]})")
    return bool(triggered)


def _making(own: str) -> str:
    """The name there is while an image of the platform is being made."""
    name, _, tag = own.removeprefix(OWN).partition(":")
    return f"{OWN}making:{name}-{tag}"
