"""The API's models of how an app is made: what is absent, the recipe decides."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from contracts import buildpack, image_reference
from contracts.errors import InvalidInput
from contracts.model import Strict
from contracts.shapes import shaped
from contracts.workload import BuildSettings

# For the shell of a build or an instance, and no other.
Command = Annotated[
    str, shaped(r"^[^\x00-\x1f\x7f]+$", "one line, without control characters", max_length=2000)
]


def _is_buildpack(name: str) -> str:
    try:
        return buildpack.parse(name).name
    except InvalidInput as error:
        raise ValueError(error.message) from error


def _is_image(name: str) -> str:
    try:
        image_reference.parse(name)
    except InvalidInput as error:
        raise ValueError(error.message) from error
    return name


BuildpackName = Annotated[str, StringConstraints(max_length=2000), AfterValidator(_is_buildpack)]
BuilderImage = Annotated[str, StringConstraints(max_length=255), AfterValidator(_is_image)]


SourcePath = Annotated[
    str, shaped(r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}$", "a path inside the source, such as services/web")
]
StageName = Annotated[
    str,
    shaped(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$", "up to 80 letters, digits, dots, dashes and underscores"),
]
ArgumentName = Annotated[
    str,
    shaped(
        r"^[A-Za-z_][A-Za-z0-9_]{0,79}$", "up to 80 letters, digits and underscores, with no digit at first"
    ),
]


class ChooseBuild(Strict):
    """What is absent, the recipe decides. Commands run in the build or the instance, by its shell."""

    dockerfile: SourcePath = "Dockerfile"
    # Of a source that holds several apps: the folder of this one.
    folder: SourcePath | None = None
    # Of the Dockerfile: the stage to build, and what its ARGs are. They stay visible in the image.
    target: StageName | None = None
    arguments: Annotated[
        dict[ArgumentName, Annotated[str, StringConstraints(max_length=2000)]],
        Field(max_length=50),
    ] = {}
    runtime: Annotated[str, StringConstraints(max_length=80)] | None = None
    # Each by a name such as heroku/nodejs, or as https://host/path#branch, in the order they run.
    buildpacks: Annotated[tuple[BuildpackName, ...], Field(max_length=buildpack.MOST)] = ()
    # A builder image of Cloud Native Buildpacks, such as heroku/builder:24.
    builder: BuilderImage | None = None
    install_command: Command | None = None
    build_command: Command | None = None
    start_command: Command | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [name for name in ("runtime", "buildpacks", "builder") if getattr(self, name)]
        if len(ways) > 1:
            raise ValueError(f"choose one of {' and '.join(ways)}: an app is built in one way")
        return self

    def settings(self) -> BuildSettings:
        return BuildSettings(**self.model_dump())
