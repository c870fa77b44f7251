"""How a source becomes an image: the first detector that finds itself named, or its files. PURE.

What the app's settings ask for goes before what the files suggest; among those, a Dockerfile comes first,
and a language's own server before the tools that stand beside it. Called by a build; the detectors are in
`builder.recipes`.
"""

from collections.abc import Sequence

from contracts.workload import BuildSettings, RuntimePreset

from builder import procfile
from builder.image_builder import StepFailed
from builder.recipes.case import Case, Recipe, Source
from builder.recipes.go import GO
from builder.recipes.java import JAVA
from builder.recipes.node import NODE
from builder.recipes.own import DOCKERFILE
from builder.recipes.packs import BUILDPACKS, CNB
from builder.recipes.php import PHP
from builder.recipes.python import PYTHON
from builder.recipes.ruby import RUBY
from builder.recipes.site import STATIC

# In the order they are asked.
DETECTORS = (DOCKERFILE, CNB, BUILDPACKS, PYTHON, NODE, PHP, RUBY, GO, JAVA, STATIC)


def wanted(settings: BuildSettings) -> frozenset[str]:
    """The files whose text `choose` looks at."""
    reads = (name for detector in DETECTORS for name in (*detector.reads, *detector.reads_of(settings)))
    return frozenset(("Procfile", *reads))


def choose(
    source: Source, settings: BuildSettings, presets: Sequence[RuntimePreset], ca_bundle: bytes | None
) -> Recipe:
    processes = procfile.parse(source.texts["Procfile"]) if "Procfile" in source.texts else {}
    case = Case(source, settings, presets, processes, ca_bundle)
    for detector in DETECTORS:
        if detector.named(case):
            return detector.recipe(case)
    if settings.runtime is not None:
        offered = ", ".join(preset.name for preset in presets) or "none"
        raise StepFailed(
            "recipe", f"the runtime {settings.runtime!r} is not offered to this app; offered: {offered}"
        )
    for detector in DETECTORS:
        if detector.found(case):
            return detector.recipe(case)
    raise StepFailed(
        "recipe",
        "nothing in the source says how to build it; looked in its first folder for: "
        + "; ".join(detector.looks_for for detector in DETECTORS),
        hint="Add a Dockerfile, or the file of your language that names its dependencies, and a Procfile.",
    )
