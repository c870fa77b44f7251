"""The models of the routes on runtimes: what an administrator offers apps to be built with."""

from typing import Annotated, Literal

from contracts.api import RuntimeView
from contracts.build_api import BuilderImage, Command
from contracts.model import Model, Strict
from contracts.shapes import shaped

# What knows how to build with it: a recipe of the platform, or buildpacks.
RuntimeType = Literal["python", "node", "php", "ruby", "go", "java", "static", "cnb", "buildpack"]
RuntimeName = Annotated[
    str,
    shaped(
        r"^[a-z0-9][a-z0-9.-]{0,38}[a-z0-9]$",
        "2 to 40 lower-case letters, digits, dots and dashes, with a letter or digit at both ends",
    ),
]
Version = Annotated[str, shaped(r"^[0-9][0-9A-Za-z.-]{0,29}$", "a version such as 3.11")]


class OfferedRuntime(RuntimeView):
    image: str
    build_image: str | None
    install_command: str | None
    build_command: str | None
    start_command: str | None
    active: bool
    # What could not be checked when it was saved.
    warnings: tuple[str, ...] = ()


class OfferedRuntimeList(Model):
    runtimes: tuple[OfferedRuntime, ...]


class CreateRuntime(Strict):
    """`image` is what apps run in, `build_image` where they are built; none: in the same."""

    type: RuntimeType
    version: Version
    image: BuilderImage
    build_image: BuilderImage | None = None
    # None: type and version, as in node-24.
    name: RuntimeName | None = None
    install_command: Command | None = None
    build_command: Command | None = None
    start_command: Command | None = None


class ChangeRuntime(Strict):
    """What is absent stays; null takes a command or the build image away. It is for builds to come."""

    version: Version | None = None
    image: BuilderImage | None = None
    build_image: BuilderImage | None = None
    install_command: Command | None = None
    build_command: Command | None = None
    start_command: Command | None = None
    active: bool | None = None
