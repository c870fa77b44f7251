"""The Dockerfile of a preset: a stage that builds and is thrown away, and one that runs. PURE.

What names the dependencies is copied before the rest, so that an unchanged lock file finds its layer again;
what changes with every deployment comes last; compilers and certificates stay behind in the first stage.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from contracts.workload import RuntimePreset

from builder import dockerfile
from builder.recipes.case import Case, Recipe, told

RENDERED = "Dockerfile"
# Where the source lies in a context that also holds what the recipe adds.
BELOW = "source/"
# The platform's own images, which no customer chooses: the engine has them or the build fails plainly.
_OWN = "berth/"

# Every tool has its own name for the same file; one that does not know a name ignores it.
_TRUST = (
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "COMPOSER_CAFILE",
    "BUNDLE_SSL_CA_CERT",
)


def build_stage(case: Case, preset: RuntimePreset, *lines: str) -> list[str]:
    """How every first stage begins."""
    begun = [f"FROM {preset.build_image or preset.image} AS build", "USER root", "WORKDIR /app"]
    if case.ca_bundle is not None:
        begun += [
            "COPY ca.pem /run/berth/ca.pem",
            "ENV " + " ".join(f"{name}=/run/berth/ca.pem" for name in _TRUST),
        ]
    return [*begun, *lines]


def run_stage(image: str, environment: str, start: str) -> list[str]:
    """How every second stage begins; what is copied into it follows."""
    return [
        f"FROM {image}",
        "WORKDIR /app",
        f"ENV PORT=8080 {environment}".rstrip(),
        "ENTRYPOINT []",
        "USER 1000:1000",
        f'CMD ["/bin/sh", "-c", {json.dumps(start)}]',
    ]


def run(command: str) -> str:
    """The command is one argument of the build's shell: no line of it becomes an instruction."""
    return f'RUN ["/bin/sh", "-c", {json.dumps(command)}]'


def runs(commands: Iterable[str | None]) -> list[str]:
    return [run(command) for command in commands if command]


def run_all(*commands: str | None) -> list[str]:
    """As one step, which costs the engine less: for commands of the recipe's own, that end where they end."""
    return runs([" && ".join(command for command in commands if command)])


def copy(names: Sequence[str], to: str = "./") -> list[str]:
    """Files of the source; none: nothing."""
    if not names:
        return []
    words = [f"{BELOW}{name}" for name in names]
    return [f"COPY {json.dumps([*words, to])}"]


def copy_source() -> str:
    return f"COPY {BELOW} ./"


def copy_built(*paths: str) -> list[str]:
    return [f"COPY --from=build {path} {path}" for path in paths]


def finished(
    case: Case,
    preset: RuntimePreset,
    stages: Sequence[Sequence[str]],
    processes: Mapping[str, str],
    why: Sequence[str],
    *,
    added: Mapping[str, bytes] | None = None,
    unwanted: Sequence[str] = (),
) -> Recipe:
    text = "\n\n".join("\n".join(stage) for stage in stages if stage) + "\n"
    files = dict(added or {})
    if case.ca_bundle is not None and "ca.pem" in text:
        files["ca.pem"] = case.ca_bundle
    # Any other image is the administrator's choice: where it comes from is not the customer's doing.
    bases = tuple(base for base in dockerfile.bases(text) if base.startswith(_OWN))
    return Recipe(
        name=preset.name,
        why=(*why, *told(processes)),
        dockerfile=RENDERED,
        bases=bases,
        processes=processes,
        below=BELOW,
        added={**files, RENDERED: text.encode()},
        unwanted=(".git", *unwanted),
    )
