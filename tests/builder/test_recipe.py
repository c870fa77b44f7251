import pytest
from builder.image_builder import StepFailed
from builder.recipe import choose, wanted
from builder.recipes.case import Recipe, Source
from contracts.workload import BuildSettings, RuntimePreset

PYTHON = RuntimePreset(
    name="python-3.11",
    type="python",
    version="3.11",
    image="berth/python:3.11",
    build_image="berth/python:3.11-build",
)
NEWER = RuntimePreset(name="python-3.13", type="python", version="3.13", image="python:3.13-slim")
NODE = RuntimePreset(name="node-22", type="node", version="22", image="berth/node:22")
OFFERED = (PYTHON, NEWER, NODE)
PROCFILE = "web: gunicorn app:app\nworker: python worker.py\n"


def source(**texts: str) -> Source:
    """`source(app_py="", Procfile="…")`: underscores before an extension stand for the dot."""
    named = {
        name.replace("__", "/").replace("_py", ".py").replace("_txt", ".txt").replace("_toml", ".toml"): text
        for name, text in texts.items()
    }
    return Source(frozenset(named), named)


REQUIREMENTS = """\
FROM berth/python:3.11-build AS build
USER root
WORKDIR /app
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN ["python3", "-m", "venv", "--without-pip", "/opt/venv"]
COPY ["source/requirements.txt", "./"]
RUN ["/bin/sh", "-c", "python3 -m pip --python /opt/venv/bin/python3 install --requirement requirements.txt"]

FROM berth/python:3.11
WORKDIR /app
ENV PORT=8080 PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
ENTRYPOINT []
USER 1000:1000
CMD ["/bin/sh", "-c", "gunicorn app:app --bind \\"0.0.0.0:$PORT\\""]
COPY --from=build /opt/venv /opt/venv
COPY source/ ./
"""


def rendered(recipe: Recipe) -> str:
    return recipe.added["Dockerfile"].decode()


def test_python_with_requirements() -> None:
    settings = BuildSettings(start_command='gunicorn app:app --bind "0.0.0.0:$PORT"')
    assert rendered(choose(source(requirements_txt=""), settings, (PYTHON,), None)) == REQUIREMENTS


PROJECT = """\
FROM python:3.13-slim AS build
USER root
WORKDIR /app
COPY ca.pem /run/berth/ca.pem
ENV {trust}
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
RUN ["python3", "-m", "venv", "--without-pip", "/opt/venv"]
COPY dependencies.py /run/berth/dependencies.py
COPY ["source/pyproject.toml", "./"]
RUN ["/bin/sh", "-c", "python3 /run/berth/dependencies.py > /run/berth/dependencies.txt"]
RUN ["/bin/sh", "-c", "python3 -m pip --python /opt/venv/bin/python3 install --requirement /run/berth/dependencies.txt"]
COPY source/ ./
RUN ["/bin/sh", "-c", "mkdir -p /opt/project && python3 -m pip --python /opt/venv/bin/python3 install --no-deps --target /opt/project ."]
ENV PATH=/opt/venv/bin:$PATH
RUN ["/bin/sh", "-c", "python manage.py collectstatic"]

FROM python:3.13-slim
WORKDIR /app
ENV PORT=8080 PATH=/opt/venv/bin:/opt/project/bin:$PATH PYTHONUNBUFFERED=1 PYTHONPATH=/opt/project
ENTRYPOINT []
USER 1000:1000
CMD ["/bin/sh", "-c", "serve"]
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/project /opt/project
COPY --from=build /app ./
"""  # noqa: E501


def test_python_with_project_build_command_and_certificates() -> None:
    preset = NEWER.model_copy(update={"build_command": "python manage.py collectstatic"})
    found = source(pyproject_toml="[build-system]\n", Procfile="web: serve")
    text = rendered(choose(found, BuildSettings(), (preset,), b"PEM"))
    trust = next(line for line in text.splitlines() if line.startswith("ENV SSL_CERT_FILE"))
    assert text == PROJECT.format(trust=trust.removeprefix("ENV "))


def test_certificates_are_only_in_the_stage_that_is_thrown_away() -> None:
    recipe = choose(source(requirements_txt="", Procfile=PROCFILE), BuildSettings(), OFFERED, b"PEM")
    building, running = recipe.added["Dockerfile"].decode().split("\n\n")
    assert recipe.added["ca.pem"] == b"PEM"
    assert "ca.pem" in building
    assert "ca.pem" not in running


@pytest.mark.promise("R7.4")
def test_a_dockerfile_comes_first() -> None:
    found = source(Dockerfile="FROM alpine:3", requirements_txt="flask", Procfile=PROCFILE)
    recipe = choose(found, BuildSettings(), OFFERED, None)
    assert (recipe.name, recipe.dockerfile, recipe.bases) == ("dockerfile", "Dockerfile", ("alpine:3",))
    assert recipe.processes == {"web": "gunicorn app:app", "worker": "python worker.py"}
    assert recipe.added == {}


def test_a_dockerfile_elsewhere() -> None:
    texts = {"docker/web.Dockerfile": "FROM alpine:3\n"}
    settings = BuildSettings(dockerfile="./docker/web.Dockerfile", start_command="serve --all")
    recipe = choose(Source(frozenset(texts), texts), settings, OFFERED, None)
    assert recipe.dockerfile == "docker/web.Dockerfile"
    assert recipe.processes == {"web": "serve --all"}
    assert "docker/web.Dockerfile" in wanted(settings)


def test_a_chosen_runtime_goes_before_a_dockerfile() -> None:
    found = source(Dockerfile="FROM alpine", app_py="", Procfile=PROCFILE)
    assert choose(found, BuildSettings(runtime="python-3.13"), OFFERED, None).name == "python-3.13"


RUNTIMES = {
    "the first offered": (source(requirements_txt="", Procfile=PROCFILE), BuildSettings(), "python-3.11"),
    "chosen": (
        source(requirements_txt="", Procfile=PROCFILE),
        BuildSettings(runtime="python-3.13"),
        "python-3.13",
    ),
    "runtime.txt": (
        source(requirements_txt="", Procfile=PROCFILE, runtime_txt="python-3.13.2\n"),
        BuildSettings(),
        "python-3.13",
    ),
    "runtime.txt, coarse": (
        source(requirements_txt="", Procfile=PROCFILE, runtime_txt="python-3"),
        BuildSettings(),
        "python-3.11",
    ),
    "pyproject.toml": (source(pyproject_toml="", Procfile=PROCFILE), BuildSettings(), "python-3.11"),
    "scripts and a Procfile": (source(app_py="", Procfile=PROCFILE), BuildSettings(), "python-3.11"),
}


@pytest.mark.parametrize(("found", "settings", "name"), RUNTIMES.values(), ids=RUNTIMES.keys())
def test_which_runtime(found: Source, settings: BuildSettings, name: str) -> None:
    assert choose(found, settings, OFFERED, None).name == name


STARTS = {
    "Procfile": (source(requirements_txt="", Procfile=PROCFILE), None, "preset", "gunicorn app:app"),
    "settings": (source(requirements_txt="", Procfile=PROCFILE), "settings", "preset", "settings"),
    "preset": (source(requirements_txt="", Procfile="worker: w"), None, "preset", "preset"),
}


@pytest.mark.parametrize(("found", "chosen", "offered", "start"), STARTS.values(), ids=STARTS.keys())
def test_which_start_command(found: Source, chosen: str | None, offered: str, start: str) -> None:
    preset = PYTHON.model_copy(update={"start_command": offered})
    recipe = choose(found, BuildSettings(start_command=chosen), (preset,), None)
    assert recipe.processes["web"] == start
    assert f'CMD ["/bin/sh", "-c", "{start}"]' in recipe.added["Dockerfile"].decode()


@pytest.mark.parametrize(
    ("line", "whole"),
    [
        ("flask==3.1", False),
        ("# -r base.txt", False),
        ("requests[socks] ; python_version > '3'", False),
        ("-r requirements/base.txt", True),
        ("-e .", True),
        ("--requirement=base.txt", True),
        ("./vendored/thing", True),
        ("thing @ file:./vendored", True),
    ],
)
def test_requirements_that_need_the_whole_source(line: str, whole: bool) -> None:
    recipe = choose(source(requirements_txt=line, Procfile=PROCFILE), BuildSettings(), OFFERED, None)
    building = recipe.added["Dockerfile"].decode().split("\n\n")[0]
    assert ("COPY source/ ./" in building) == whole


FAILURES = {
    "nothing": (
        source(readme_md=""),
        BuildSettings(),
        OFFERED,
        "requirements.txt, pyproject.toml, Pipfile",
    ),
    "scripts without a Procfile": (source(tool_py=""), BuildSettings(), OFFERED, "*.py with a Procfile"),
    "no start": (
        source(requirements_txt=""),
        BuildSettings(),
        OFFERED,
        "nothing says how the app is started",
    ),
    "chosen Dockerfile missing": (
        source(Dockerfile="FROM a"),
        BuildSettings(dockerfile="deploy/Dockerfile"),
        OFFERED,
        "deploy/Dockerfile",
    ),
    "Dockerfile is a link": (Source(frozenset(["Dockerfile"]), {}), BuildSettings(), OFFERED, "is a link"),
    "unknown runtime": (
        source(app_py=""),
        BuildSettings(runtime="python-2"),
        OFFERED,
        "offered: python-3.11, python-3.13",
    ),
    "runtime.txt not offered": (
        source(requirements_txt="", runtime_txt="python-3.9"),
        BuildSettings(),
        OFFERED,
        "asks for Python 3.9",
    ),
    "runtime.txt odd": (
        source(requirements_txt="", runtime_txt="3.11; rm -rf /"),
        BuildSettings(),
        OFFERED,
        "not of the form",
    ),
    "none offered": (
        source(requirements_txt="", Procfile=PROCFILE),
        BuildSettings(),
        (NODE,),
        "no Python runtime is offered",
    ),
    "image with a line break": (
        source(requirements_txt="", Procfile=PROCFILE),
        BuildSettings(),
        (PYTHON.model_copy(update={"image": "a\nRUN evil"}),),
        "no valid image",
    ),
}


@pytest.mark.parametrize(("found", "settings", "offered", "words"), FAILURES.values(), ids=FAILURES.keys())
def test_says_what_is_missing(
    found: Source, settings: BuildSettings, offered: tuple[RuntimePreset, ...], words: str
) -> None:
    with pytest.raises(StepFailed) as failed:
        choose(found, settings, offered, None)
    assert failed.value.step == "recipe"
    assert words in failed.value.message


def test_no_command_can_leave_its_line() -> None:
    evil = 'a"\nRUN evil \\'
    settings = BuildSettings(start_command=evil, install_command=evil, build_command=evil)
    lines = rendered(choose(source(requirements_txt=""), settings, (PYTHON,), None)).splitlines()
    escaped = r'"a\"\nRUN evil \\"]'
    assert f'CMD ["/bin/sh", "-c", {escaped}' in lines
    assert lines.count(f'RUN ["/bin/sh", "-c", {escaped}') == 2
    assert not any(line.startswith("RUN evil") for line in lines)
