"""Python: requirements.txt, uv, Poetry, Pipenv or a plain pyproject.toml, in a virtual environment. PURE."""

import re

from contracts.workload import RuntimePreset

from builder.image_builder import StepFailed
from builder.recipes import python_start
from builder.recipes.case import Case, Detector, Recipe, Source, first_version, same_version
from builder.recipes.rendering import (
    build_stage,
    copy,
    copy_built,
    copy_source,
    finished,
    run,
    run_stage,
    runs,
)

# The one that says most precisely what is installed is taken.
MANIFESTS = ("uv.lock", "poetry.lock", "Pipfile.lock", "requirements.txt", "Pipfile", "pyproject.toml")
_RUNTIME_TXT = re.compile(r"^python-(\d+(?:\.\d+){0,2})\s*$")
# A requirement that names a file: then the dependencies are only known with the whole source.
_LOCAL = re.compile(r"^\s*(-r|-c|-e|--requirement|--constraint|--editable|\.|/|file:)|@\s*file:")
_UNWANTED = (".venv", "venv", "__pycache__")
_VENV = "/opt/venv"
_PIP = f"python3 -m pip --python {_VENV}/bin/python3 install"

_DEPENDENCIES = b"""\
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file).get("project", {})
print("\\n".join(project.get("dependencies", [])))
"""
# Its own environment, so that what it needs does not meet what the app needs.
_TOOL = "python3 -m venv /opt/tool && /opt/tool/bin/pip install --quiet '{}'"
_HERE = f"VIRTUAL_ENV={_VENV} PATH={_VENV}/bin:$PATH"


def manifest_of(source: Source) -> str | None:
    found = source.first(*MANIFESTS)
    # A lock of one tool beside the list of another: uv and Poetry keep theirs beside a pyproject.toml.
    if found in ("uv.lock", "poetry.lock") and "pyproject.toml" not in source.names:
        found = source.first(*MANIFESTS[2:])
    if found == "Pipfile.lock" and "Pipfile" not in source.names:
        found = source.first(*MANIFESTS[3:])
    if found == "pyproject.toml" and "[tool.poetry]" in source.text("pyproject.toml"):
        return "pyproject.toml of Poetry"
    return found


def _found(case: Case) -> bool:
    source = case.source
    if manifest_of(source) is not None:
        return True
    scripts = source.at_root(".py")
    return bool(scripts and (case.processes or source.of("main.py", "app.py", "manage.py")))


def _recipe(case: Case) -> Recipe:
    preset = _preset(case)
    manifest = manifest_of(case.source)
    processes = case.started(
        preset, python_start.command(case.source), "gunicorn app:app --bind 0.0.0.0:$PORT"
    )
    install, with_project = _install(case, preset, manifest)
    built = case.build_command(preset)
    build = build_stage(
        case,
        preset,
        "ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore",
        f'RUN ["python3", "-m", "venv", "--without-pip", "{_VENV}"]',
        *install,
    )
    if built:
        build += [copy_source()] if copy_source() not in install else []
        build += [f"ENV PATH={_VENV}/bin:$PATH", run(built)]
    paths = f"{_VENV}/bin:"
    environment = "PYTHONUNBUFFERED=1"
    if with_project:
        paths, environment = f"{_VENV}/bin:/opt/project/bin:", f"{environment} PYTHONPATH=/opt/project"
    running = run_stage(preset.image, f"PATH={paths}$PATH {environment}", processes["web"])
    running += copy_built(_VENV, *(["/opt/project"] if with_project else []))
    running += ["COPY --from=build /app ./"] if built else [copy_source()]
    return finished(
        case,
        preset,
        (build, running),
        processes,
        (f"Found {_words(case, manifest)}, built with the runtime {preset.name}.",),
        added={"dependencies.py": _DEPENDENCIES} if with_project else None,
        unwanted=_UNWANTED,
    )


def _words(case: Case, manifest: str | None) -> str:
    match manifest:
        case "uv.lock":
            return "pyproject.toml and uv.lock: Python with uv"
        case "poetry.lock":
            return "pyproject.toml and poetry.lock: Python with Poetry"
        case "pyproject.toml of Poetry":
            return "pyproject.toml: Python with Poetry"
        case "Pipfile.lock" | "Pipfile":
            return f"{manifest}: Python with Pipenv"
        case None:
            return f"{', '.join(case.source.at_root('.py')[:3]) or 'no list of dependencies'}: Python"
    return f"{manifest}: Python with pip"


def _install(case: Case, preset: RuntimePreset, manifest: str | None) -> tuple[list[str], bool]:
    """What fills the virtual environment; and whether the source is a package to be installed itself."""
    source = case.source
    chosen = case.install_command(preset, None)
    if chosen is not None:
        return [copy_source(), f"ENV {_HERE}", run(chosen)], False
    match manifest:
        case "uv.lock":
            sync = (
                f"UV_PROJECT_ENVIRONMENT={_VENV} UV_PYTHON_DOWNLOADS=never UV_LINK_MODE=copy UV_NO_CACHE=1 "
                "/opt/tool/bin/uv sync --frozen --no-dev"
            )
            whole = _workspace(source)
            listed = [copy_source()] if whole else copy(source.of("pyproject.toml", "uv.lock"))
            rest = f"{sync} --no-editable" if whole else f"{sync} --no-install-project"
            return [run(_TOOL.format("uv<1")), *listed, run(rest), *_project(source)], not whole
        case "poetry.lock" | "pyproject.toml of Poetry":
            files = source.of("pyproject.toml", "poetry.lock", "poetry.toml")
            poetry = (
                f"{_HERE} POETRY_VIRTUALENVS_CREATE=false POETRY_NO_INTERACTION=1 "
                "/opt/tool/bin/poetry install --only main --no-root --no-cache"
            )
            return [run(_TOOL.format("poetry<3")), *copy(files), run(poetry), *_project(source)], True
        case "Pipfile.lock" | "Pipfile":
            pipenv = f"{_HERE} PIPENV_NOSPIN=1 /opt/tool/bin/pipenv"
            how = "sync" if manifest == "Pipfile.lock" else "install --skip-lock"
            files = source.of("Pipfile", "Pipfile.lock")
            return [run(_TOOL.format("pipenv")), *copy(files), run(f"{pipenv} {how}")], False
        case "requirements.txt":
            whole = any(_LOCAL.search(line) for line in source.texts.get(manifest, "./").splitlines())
            listed = [copy_source()] if whole else copy((manifest,))
            return [*listed, run(f"{_PIP} --requirement {manifest}")], False
        case "pyproject.toml":
            return [
                "COPY dependencies.py /run/berth/dependencies.py",
                *copy((manifest,)),
                *runs(
                    (
                        "python3 /run/berth/dependencies.py > /run/berth/dependencies.txt",
                        f"{_PIP} --requirement /run/berth/dependencies.txt",
                    )
                ),
                *_project(source),
            ], True
    return [], False


def _project(source: Source) -> list[str]:
    """The app itself, where it says how it is made into a package: its scripts are commands then."""
    make = ""
    if "[build-system]" in source.text("pyproject.toml"):
        make = f" && {_PIP} --no-deps --target /opt/project ."
    return [copy_source(), run(f"mkdir -p /opt/project{make}")]


def _workspace(source: Source) -> bool:
    text = source.text("uv.lock") + source.text("pyproject.toml")
    return "[tool.uv.workspace]" in text or "editable = " in text or "directory = " in text


def _preset(case: Case) -> RuntimePreset:
    asked, where = _asked(case.source)
    if asked is None or case.names_runtime("python"):
        return case.preset("python", "Python")
    offered = case.offered("python")
    if offered and not any(same_version(asked, preset.version) for preset in offered):
        names = ", ".join(preset.name for preset in offered)
        raise StepFailed("recipe", f"{where} asks for Python {asked}; offered: {names}")
    return case.preset("python", "Python", lambda version: same_version(asked, version))


def _asked(source: Source) -> tuple[str | None, str]:
    if "runtime.txt" in source.texts:
        asked = _RUNTIME_TXT.match(source.texts["runtime.txt"])
        if asked is None:
            raise StepFailed("recipe", "runtime.txt is not of the form `python-3.11`")
        return asked[1], "runtime.txt"
    return first_version(source.text(".python-version")), ".python-version"


PYTHON = Detector(
    name="python",
    looks_for="requirements.txt, pyproject.toml, Pipfile, or *.py with a Procfile (Python)",
    reads=(*MANIFESTS, "runtime.txt", ".python-version", *python_start.READS),
    named=lambda case: case.names_runtime("python"),
    found=_found,
    recipe=_recipe,
)
