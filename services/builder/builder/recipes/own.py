"""The customer's own Dockerfile, built as it says. PURE."""

from collections.abc import Collection

from contracts.workload import BuildSettings

from builder import dockerfile
from builder.image_builder import StepFailed
from builder.recipes.case import LARGEST_TEXT, Case, Detector, Recipe, plain_path, told


def _named(case: Case) -> bool:
    settings = case.settings
    otherwise = settings.runtime or settings.builder or settings.buildpacks
    return not otherwise and bool(
        settings.dockerfile != "Dockerfile" or settings.target or settings.arguments
    )


def _found(case: Case) -> bool:
    return plain_path(case.settings.dockerfile) in case.source.names


def _recipe(case: Case) -> Recipe:
    settings, path = case.settings, plain_path(case.settings.dockerfile)
    if path not in case.source.names:
        raise StepFailed(
            "recipe",
            f"the source has no file {path!r}, which the app names as its Dockerfile",
            hint="Correct the path in the app's build settings; it starts at the root of the source.",
        )
    if path not in case.source.texts:
        raise StepFailed("recipe", f"{path} is a link or larger than {LARGEST_TEXT // 1024} KiB")
    processes = dict(case.processes)
    if settings.start_command:
        processes["web"] = settings.start_command
    stage = f", its stage {settings.target}" if settings.target else ""
    return Recipe(
        name="dockerfile",
        why=(f"Found {path}: building with it{stage}.", *told(processes)),
        dockerfile=path,
        bases=dockerfile.bases(case.source.texts[path], settings.arguments),
        processes=processes,
        target=settings.target,
        arguments=settings.arguments,
    )


def _reads(settings: BuildSettings) -> Collection[str]:
    return (plain_path(settings.dockerfile), ".dockerignore")


DOCKERFILE = Detector(
    name="dockerfile",
    looks_for="Dockerfile",
    reads=(),
    named=_named,
    found=_found,
    recipe=_recipe,
    reads_of=_reads,
)
