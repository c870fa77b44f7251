"""What a recipe is told, and what it answers. PURE.

A detector looks at the names of the files and at the few texts it has asked for; what it makes of them
is a Dockerfile to build, the processes it starts, and sentences that say why. `builder.recipe` calls it.
"""

import json
import posixpath
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.workload import BuildSettings, RuntimePreset

from builder.buildpacks import Classic
from builder.cnb import Lifecycle
from builder.image_builder import StepFailed

LARGEST_TEXT = 256 * 1024

_IMAGE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$")
_VERSION = re.compile(r"\d+(?:\.\d+){0,2}")


@dataclass(frozen=True, slots=True)
class Source:
    """The names of all files of the app, and the text of those a recipe may ask for."""

    names: frozenset[str]
    texts: Mapping[str, str]

    def first(self, *names: str) -> str | None:
        return next((name for name in names if name in self.names), None)

    def of(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.names)

    def at_root(self, suffix: str) -> list[str]:
        return sorted(name for name in self.names if name.endswith(suffix) and "/" not in name)

    def below(self, folder: str) -> bool:
        return any(name.startswith(f"{folder}/") for name in self.names)

    def text(self, name: str) -> str:
        return self.texts.get(name, "")

    def json(self, name: str) -> dict[str, Any]:
        """A file that has to be an object; empty when there is none."""
        if name not in self.names:
            return {}
        if name not in self.texts:
            raise StepFailed("recipe", f"{name} is a link or larger than {LARGEST_TEXT // 1024} KiB")
        try:
            found = json.loads(self.texts[name].removeprefix("\ufeff"))
        except ValueError as error:
            raise StepFailed("recipe", f"{name} is not valid JSON: {error}") from error
        if not isinstance(found, dict):
            raise StepFailed("recipe", f"{name} is not a JSON object")
        return found


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str
    # Why this one, in sentences for the log.
    why: tuple[str, ...]
    dockerfile: str
    bases: tuple[str, ...]
    processes: Mapping[str, str]
    # Prefix of the source's files in the context, and the files added beside them.
    below: str = ""
    added: Mapping[str, bytes] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()
    # Of the customer's own Dockerfile: the stage to build, and what its ARGs are.
    target: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    # Secrets for the steps that ask for them: see `builder.handing`.
    handed: Mapping[str, str] = field(default_factory=dict)
    # Not a Dockerfile, but a program of an image makes it: buildpacks, or a lifecycle.
    by: Classic | Lifecycle | None = None


@dataclass(frozen=True, slots=True)
class Case:
    source: Source
    settings: BuildSettings
    # The runtimes offered to the app.
    presets: Sequence[RuntimePreset]
    # What the Procfile says.
    processes: Mapping[str, str]
    # What builds need to trust a registry behind an inspecting proxy.
    ca_bundle: bytes | None = None

    def offered(self, type: str) -> list[RuntimePreset]:
        return [preset for preset in self.presets if preset.type == type]

    def names_runtime(self, type: str) -> bool:
        """Whether the app has chosen a runtime of the type by its name."""
        return any(preset.name == self.settings.runtime for preset in self.offered(type))

    def preset(self, type: str, title: str, fits: Callable[[str], bool] | None = None) -> RuntimePreset:
        """The chosen one, else the first whose version `fits`, else the first."""
        offered = self.offered(type)
        found = next((preset for preset in offered if preset.name == self.settings.runtime), None)
        if found is None and fits is not None:
            found = next((preset for preset in offered if fits(preset.version)), None)
        if found is None and offered:
            found = offered[0]
        if found is None:
            raise StepFailed(
                "recipe",
                f"no {title} runtime is offered to this app",
                hint="Choose a plan that has one, ask the administrator, or bring a Dockerfile.",
            )
        for image in (found.image, found.build_image):
            if image is not None and not _IMAGE.match(image):
                raise StepFailed(
                    "recipe", f"the runtime {found.name} has no valid image; ask the administrator"
                )
        return found

    def started(self, preset: RuntimePreset, default: str | None, example: str) -> dict[str, str]:
        """Every process; `web` as the app, its Procfile, the administrator or the recipe says."""
        web = self.settings.start_command or self.processes.get("web") or preset.start_command or default
        if not web:
            raise StepFailed(
                "recipe",
                "nothing says how the app is started",
                hint=f"Add a Procfile with a line such as `web: {example}`, or set the app's start command.",
            )
        return {**self.processes, "web": web}

    def install_command(self, preset: RuntimePreset, default: str | None) -> str | None:
        return self.settings.install_command or preset.install_command or default

    def build_command(self, preset: RuntimePreset, default: str | None = None) -> str | None:
        return self.settings.build_command or preset.build_command or default


@dataclass(frozen=True, slots=True)
class Detector:
    name: str
    # For the error when nothing matches.
    looks_for: str
    # The files whose text it needs, besides those of the app's settings.
    reads: Collection[str]
    # The app's settings ask for this one: then no other is looked at.
    named: Callable[[Case], bool]
    found: Callable[[Case], bool]
    recipe: Callable[[Case], Recipe]
    # Further files whose text it needs, once it knows the settings.
    reads_of: Callable[[BuildSettings], Collection[str]] = field(default=lambda settings: ())


def told(processes: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"Process {name}: {command}" for name, command in processes.items())


def same_version(asked: str, version: str) -> bool:
    """`3.11.4` is asked for and 3.11 is there: as near as an offer that is kept up to date can be."""
    parts, offered = asked.split("."), version.split(".")
    shorter = min(len(parts), len(offered))
    return parts[:shorter] == offered[:shorter]


def first_version(text: str) -> str | None:
    found = _VERSION.search(text)
    return found[0] if found else None


def plain_path(path: str) -> str:
    return posixpath.normpath(path)
