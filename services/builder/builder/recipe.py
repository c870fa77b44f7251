"""How a source becomes an image: its Dockerfile, or one rendered for an offered runtime. PURE.

A rendered Dockerfile has its dependencies in a layer that only the files naming them can change, what changes
with every deployment last, and leaves compilers, caches and certificates behind in its first stage.
"""

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from contracts.workload import BuildSettings, RuntimePreset

from builder import dockerfile, procfile
from builder.image_builder import StepFailed

PYTHON_FILES = ("requirements.txt", "pyproject.toml")
RENDERED = "Dockerfile"
# Where the source lies in a context that also holds what the recipe adds.
BELOW = "source/"
LARGEST_TEXT = 256 * 1024

# The platform's own stacks come as a pair: the second has the compilers.
_STACK = re.compile(r"^(?:[^/]+/)?berth/[a-z]+:[0-9.]+$")
_IMAGE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$")
_RUNTIME_TXT = re.compile(r"^python-(\d+(?:\.\d+){0,2})\s*$")
# A requirement that names a file: then the dependencies are only known with the whole source.
_LOCAL = re.compile(r"^\s*(-r|-c|-e|--requirement|--constraint|--editable|\.|/|file:)|@\s*file:")
_UNWANTED = (".git", ".venv", "venv", "__pycache__")

_DEPENDENCIES = b"""\
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file).get("project", {})
print("\\n".join(project.get("dependencies", [])))
"""


@dataclass(frozen=True, slots=True)
class Source:
    """The names of all files, and the text of those a recipe may ask for."""

    names: frozenset[str]
    texts: Mapping[str, str]


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


def wanted(settings: BuildSettings) -> frozenset[str]:
    """The files whose text `choose` looks at."""
    path = posixpath.normpath(settings.dockerfile)
    return frozenset((path, ".dockerignore", "Procfile", "runtime.txt", "requirements.txt"))


def choose(
    source: Source, settings: BuildSettings, presets: Sequence[RuntimePreset], ca_bundle: bytes | None
) -> Recipe:
    processes = procfile.parse(source.texts["Procfile"]) if "Procfile" in source.texts else {}
    path = posixpath.normpath(settings.dockerfile)
    if settings.runtime is None and path in source.names:
        return _own(source, path, settings, processes)
    if settings.dockerfile != "Dockerfile":
        raise StepFailed(
            "recipe",
            f"the source has no file {path!r}, which the app names as its Dockerfile",
            hint="Correct the path in the app's build settings; it starts at the root of the source.",
        )
    scripts = [name for name in source.names if name.endswith(".py") and "/" not in name]
    looks_like_python = any(name in source.names for name in PYTHON_FILES) or (scripts and processes)
    if looks_like_python or settings.runtime is not None:
        return _python(source, settings, presets, processes, ca_bundle)
    raise StepFailed(
        "recipe",
        "nothing in the source says how to build it; looked at its root for: Dockerfile, "
        f"{', '.join(PYTHON_FILES)}, and *.py with a Procfile"
        + ("; there are *.py files, but no Procfile" if scripts else ""),
        hint="Add a Dockerfile, or the file of your language that names its dependencies, and a Procfile.",
    )


def _own(source: Source, path: str, settings: BuildSettings, processes: dict[str, str]) -> Recipe:
    if path not in source.texts:
        raise StepFailed("recipe", f"{path} is a link or larger than {LARGEST_TEXT // 1024} KiB")
    if not processes and settings.start_command is not None:
        processes = {"web": settings.start_command}
    return Recipe(
        name="dockerfile",
        why=(f"Found {path}: building with it.", *_told(processes)),
        dockerfile=path,
        bases=dockerfile.bases(source.texts[path]),
        processes=processes,
    )


def _python(
    source: Source,
    settings: BuildSettings,
    presets: Sequence[RuntimePreset],
    processes: dict[str, str],
    ca_bundle: bytes | None,
) -> Recipe:
    preset = _preset(source, settings, presets)
    start = processes.get("web") or settings.start_command or preset.start_command
    if not start:
        raise StepFailed(
            "recipe",
            "nothing says how the app is started",
            hint="Add a Procfile with a line such as `web: gunicorn app:app --bind 0.0.0.0:$PORT`.",
        )
    manifest = next((name for name in PYTHON_FILES if name in source.names), None)
    whole = manifest == "requirements.txt" and any(
        _LOCAL.search(line) for line in source.texts.get(manifest, "./").splitlines()
    )
    added: dict[str, bytes] = {}
    if ca_bundle is not None:
        added["ca.pem"] = ca_bundle
    if manifest == "pyproject.toml":
        added["dependencies.py"] = _DEPENDENCIES
    text = render_python(preset, start, manifest, whole=whole, with_ca="ca.pem" in added)
    found = manifest or "Python files and a Procfile"
    processes = {**processes, "web": start}
    return Recipe(
        name=preset.name,
        why=(f"Found {found}: a Python app, built with the runtime {preset.name}.", *_told(processes)),
        dockerfile=RENDERED,
        # Any other image is the administrator's choice: where it comes from is not the customer's doing.
        bases=dockerfile.bases(text) if _STACK.match(preset.image) else (),
        processes=processes,
        below=BELOW,
        added={**added, RENDERED: text.encode()},
        unwanted=_UNWANTED,
    )


def _preset(source: Source, settings: BuildSettings, presets: Sequence[RuntimePreset]) -> RuntimePreset:
    offered = [preset for preset in presets if preset.type == "python"]
    names = ", ".join(preset.name for preset in offered) or "none"
    asked = _RUNTIME_TXT.match(source.texts.get("runtime.txt", ""))
    if settings.runtime is not None:
        found = next((preset for preset in offered if preset.name == settings.runtime), None)
        if found is None:
            raise StepFailed(
                "recipe", f"the runtime {settings.runtime!r} is not offered to this app; offered: {names}"
            )
    elif "runtime.txt" in source.texts:
        if asked is None:
            raise StepFailed("recipe", "runtime.txt is not of the form `python-3.11`")
        found = next((preset for preset in offered if _fits(asked[1], preset.version)), None)
        if found is None:
            raise StepFailed("recipe", f"runtime.txt asks for Python {asked[1]}; offered: {names}")
    elif offered:
        found = offered[0]
    else:
        raise StepFailed("recipe", "no Python runtime is offered to this app; ask the administrator")
    if not _IMAGE.match(found.image):
        raise StepFailed("recipe", f"the runtime {found.name} has no valid image; ask the administrator")
    return found


def _fits(asked: str, version: str) -> bool:
    """`3.11.4` is asked for and 3.11 is there: as near as an offer that is kept up to date can be."""
    parts, offered = asked.split("."), version.split(".")
    shorter = min(len(parts), len(offered))
    return parts[:shorter] == offered[:shorter]


def _told(processes: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"Process {name}: {command}" for name, command in processes.items())


def render_python(
    preset: RuntimePreset, start: str, manifest: str | None, *, whole: bool, with_ca: bool
) -> str:
    """`whole`: the dependencies need the whole source, not only the file that names them."""
    pip = '"python3", "-m", "pip", "--python", "/opt/venv/bin/python3", "install"'
    project = manifest == "pyproject.toml"
    prepared = preset.build_command is not None
    with_compilers = f"{preset.image}-build" if _STACK.match(preset.image) else preset.image
    build = [
        f"FROM {with_compilers} AS build",
        "USER root",
        "WORKDIR /app",
        "ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore",
    ]
    if with_ca:
        build += [
            "COPY ca.pem /run/berth/ca.pem",
            "ENV PIP_CERT=/run/berth/ca.pem SSL_CERT_FILE=/run/berth/ca.pem "
            "REQUESTS_CA_BUNDLE=/run/berth/ca.pem",
        ]
    build += ['RUN ["python3", "-m", "venv", "--without-pip", "/opt/venv"]']
    if project:
        build += [
            "COPY dependencies.py /run/berth/dependencies.py",
            f"COPY {BELOW}pyproject.toml ./",
            "RUN python3 /run/berth/dependencies.py > /run/berth/dependencies.txt",
            f'RUN [{pip}, "--requirement", "/run/berth/dependencies.txt"]',
            f"COPY {BELOW} ./",
            "RUN mkdir /opt/project && if grep -q '^\\[build-system\\]' pyproject.toml; then "
            "python3 -m pip --python /opt/venv/bin/python3 install --no-deps --target /opt/project .; fi",
        ]
    elif manifest is not None:
        build += [f"COPY {BELOW} ./" if whole else f"COPY {BELOW}{manifest} ./"]
        build += [f'RUN [{pip}, "--requirement", "{manifest}"]']
    if prepared:
        if not (project or whole):
            build += [f"COPY {BELOW} ./"]
        build += [f"RUN {_one_line(preset.build_command or '')}"]
    run = [
        f"FROM {preset.image}",
        "WORKDIR /app",
        "ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PORT=8080",
    ]
    if project:
        run += ["ENV PATH=/opt/project/bin:$PATH PYTHONPATH=/opt/project"]
    run += [
        "USER 1000:1000",
        f'CMD ["/bin/sh", "-c", {json.dumps(start)}]',
        "COPY --from=build /opt/venv /opt/venv",
    ]
    if project:
        run += ["COPY --from=build /opt/project /opt/project"]
    run += ["COPY --from=build /app ./" if prepared else f"COPY {BELOW} ./"]
    return "\n".join([*build, "", *run, ""])


def _one_line(command: str) -> str:
    if any(ord(character) < 32 for character in command) or command.rstrip().endswith("\\"):
        raise StepFailed("recipe", "the runtime's build command is not one line; ask the administrator")
    return command
