"""Buildpacks: of the classic kind on a stack of the platform, or those of a builder image. PURE.

An app names them in its settings, or a runtime of theirs; a list of classic ones in its source is looked for,
too. What a builder finds in an app, only its own buildpacks know: so none is tried unasked.
"""

from builder import buildpacks, cnb
from builder.buildpacks import LIST, Classic
from builder.cnb import Lifecycle
from builder.image_builder import StepFailed
from builder.recipes.case import Case, Detector, Recipe, told

STACK, BUILDER = "buildpack", "cnb"


def _builder_named(case: Case) -> bool:
    return case.settings.builder is not None or case.names_runtime(BUILDER)


def _by_builder(case: Case) -> Recipe:
    settings = case.settings
    if settings.builder is not None:
        name = cnb.reference(settings.builder, "the builder")
        why = f"The app names the builder {name}: its buildpacks build it."
        offered = None
    else:
        offered = case.preset(BUILDER, "builder")
        name = offered.image
        why = f"Building with the runtime {offered.name}, which is the builder {name}."
    start = settings.start_command or (offered.start_command if offered is not None else None)
    return Recipe(
        name=offered.name if offered is not None else "cnb",
        why=(why, *told(case.processes)),
        dockerfile="",
        bases=(),
        processes=case.processes,
        by=Lifecycle(name, trusted=offered is not None, start=start),
    )


CNB = Detector(
    name="cnb",
    looks_for="a builder image in the app's settings",
    reads=(),
    named=_builder_named,
    found=lambda case: False,
    recipe=_by_builder,
)


def _buildpacks_named(case: Case) -> bool:
    return bool(case.settings.buildpacks) or case.names_runtime(STACK)


def _by_buildpacks(case: Case) -> Recipe:
    settings = case.settings
    if not settings.buildpacks and LIST not in case.source.names:
        raise StepFailed(
            "recipe",
            f"nothing says which buildpacks build the app: its settings name none, and it has no {LIST}",
            hint="Name them in the build settings, such as heroku/nodejs.",
        )
    found = buildpacks.chosen(settings.buildpacks, case.source.texts.get(LIST))
    preset = case.preset(STACK, "buildpack")
    said = "The app names" if settings.buildpacks else f"Found {LIST} with"
    names = ", ".join(buildpack.name for buildpack in found)
    return Recipe(
        name="buildpacks",
        why=(f"{said} the buildpacks {names}: they build it on {preset.name}.",),
        dockerfile="",
        bases=(),
        processes=case.processes,
        by=Classic(
            found,
            stack=f"heroku-{preset.version}",
            image=preset.image,
            build_image=preset.build_image or preset.image,
            start=settings.start_command or preset.start_command,
        ),
    )


BUILDPACKS = Detector(
    name="buildpacks",
    looks_for=LIST,
    reads=(LIST,),
    named=_buildpacks_named,
    found=lambda case: LIST in case.source.names,
    recipe=_by_buildpacks,
)
