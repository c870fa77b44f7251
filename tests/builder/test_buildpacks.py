"""Which buildpacks, what their script and their words mean, and how a process starts; without an engine."""

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from builder import buildpacks, recipe
from builder.buildpacks import Classic, Release
from builder.cnb import Lifecycle
from builder.image_builder import StepFailed
from builder.material import Pack
from builder.recipes.case import Source
from contracts import buildpack
from contracts.archive import ArchiveLimits
from contracts.build_api import ChooseBuild
from contracts.buildpack import Buildpack
from contracts.errors import InvalidInput
from contracts.workload import BuildSettings, RuntimePreset
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

NODEJS = "https://github.com/heroku/heroku-buildpack-nodejs"
STACK = RuntimePreset(
    name="buildpack-22", type="buildpack", version="22", image="berth/buildpack:22", build_image="b:2"
)
BUILDER = RuntimePreset(name="paketo", type="cnb", version="1", image="example/builder:1")
PYTHON = RuntimePreset(name="python-3.11", type="python", version="3.11", image="berth/python:3.11")
OFFERED = (PYTHON, STACK, BUILDER)


def source(**texts: str) -> Source:
    named = {name.replace("_", "."): text for name, text in texts.items()}
    return Source(frozenset(named), named)


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "url", "ref"),
    [
        ("heroku/nodejs", NODEJS, None),
        ("heroku/nodejs#v200", NODEJS, "v200"),
        ("heroku/jvm", "https://github.com/heroku/heroku-buildpack-jvm-common", None),
        ("https://example.org/a/b.git", "https://example.org/a/b.git", None),
        ("https://example.org/a/b#feature/x", "https://example.org/a/b", "feature/x"),
    ],
)
def test_names_of_buildpacks(name: str, url: str, ref: str | None) -> None:
    assert buildpack.parse(name) == Buildpack(name, url, ref)


@pytest.mark.parametrize(
    "name",
    [
        "heroku/cobol",
        "nodejs",
        "",
        "heroku/nodejs#",
        "heroku/nodejs#--upload-pack=x",
        "http://example.org/a/b",
        "ssh://git@example.org/a/b",
        "git@example.org:a/b",
        "file:///etc",
        "ext::sh -c x",
        "https://user:secret@example.org/a",
        "../x",
        "https://example.org/a b",
    ],
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        buildpack.parse(name)
    with pytest.raises(ValidationError):
        ChooseBuild.model_validate({"buildpacks": [name]})


def test_the_api_takes_one_way_to_build() -> None:
    chosen = ChooseBuild.model_validate({"buildpacks": ["heroku/nodejs", "https://example.org/b#main"]})
    assert chosen.settings().buildpacks == ("heroku/nodejs", "https://example.org/b#main")
    assert ChooseBuild.model_validate({"builder": "heroku/builder:24"}).settings().builder
    for wrong in (
        {"buildpacks": ["heroku/nodejs"], "builder": "heroku/builder:24"},
        {"buildpacks": ["heroku/nodejs"], "runtime": "node-24"},
        {"builder": "Heroku/Builder"},
        {"builder": "x y"},
        {"buildpacks": ["heroku/nodejs"] * 11},
        {"buildpacks": "heroku/nodejs"},
    ):
        with pytest.raises(ValidationError):
            ChooseBuild.model_validate(wrong)


# --- detection ---------------------------------------------------------------------------------------------


def test_what_the_app_names_goes_before_what_its_source_has() -> None:
    found = source(Dockerfile="FROM x\n", requirements_txt="", Procfile="web: x\n")
    named = recipe.choose(found, BuildSettings(buildpacks=("heroku/nodejs",)), OFFERED, None)
    assert named.by == Classic(
        (Buildpack("heroku/nodejs", NODEJS, None),), "heroku-22", "berth/buildpack:22", "b:2", None
    )
    assert named.why == ("The app names the buildpacks heroku/nodejs: they build it on buildpack-22.",)
    built = recipe.choose(found, BuildSettings(builder="heroku/builder:24", start_command="x"), OFFERED, None)
    assert built.by == Lifecycle("heroku/builder:24", trusted=False, start="x")
    offered = recipe.choose(found, BuildSettings(runtime="paketo"), OFFERED, None)
    assert offered.by == Lifecycle("example/builder:1", trusted=True, start=None)
    assert recipe.choose(found, BuildSettings(), OFFERED, None).by is None


def test_a_list_in_the_source_goes_before_a_language() -> None:
    listed = source(requirements_txt="", Procfile="web: x\n")
    texts = {**listed.texts, ".buildpacks": "\ufeff# mine\r\nheroku/nodejs#v1\n\n  https://example.org/b \n"}
    found = recipe.choose(Source(frozenset(texts), texts), BuildSettings(), OFFERED, None)
    assert isinstance(found.by, Classic)
    assert [one.name for one in found.by.buildpacks] == ["heroku/nodejs#v1", "https://example.org/b"]
    assert found.why[0].startswith("Found .buildpacks with the buildpacks heroku/nodejs#v1, https://")


@pytest.mark.parametrize(
    ("texts", "settings", "offered", "words"),
    [
        ({".buildpacks": "# none\n"}, BuildSettings(), OFFERED, ".buildpacks names none"),
        (
            {".buildpacks": "heroku/x\n"},
            BuildSettings(),
            OFFERED,
            "not known by this name; known are heroku/",
        ),
        ({".buildpacks": "heroku/go\n" * 11}, BuildSettings(), OFFERED, "more than 10"),
        ({".buildpacks": "heroku/go\n"}, BuildSettings(), (PYTHON,), "no buildpack runtime is offered"),
        ({}, BuildSettings(runtime="buildpack-22"), OFFERED, "nothing says which buildpacks"),
        ({}, BuildSettings(builder="a b"), OFFERED, "is not a valid name of an image"),
    ],
)
def test_what_cannot_be_built(
    texts: dict[str, str], settings: BuildSettings, offered: tuple[RuntimePreset, ...], words: str
) -> None:
    with pytest.raises(StepFailed, match=words) as failed:
        recipe.choose(Source(frozenset(texts), texts), settings, offered, None)
    assert failed.value.step == "recipe"


# --- the script --------------------------------------------------------------------------------------------


class Sandbox:
    """The script, run on a folder of the tests instead of a container."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("build", "cache", "app", "env", "told"):
            (folder / name).mkdir()

    def buildpack(self, name: str, **programs: str) -> None:
        (self.folder / name / "bin").mkdir(parents=True)
        for program, text in programs.items():
            path = self.folder / name / "bin" / program
            path.write_text(f"#!/bin/bash\n{text}\n")
            path.chmod(0o755)

    def run(self, *names: str) -> subprocess.CompletedProcess[str]:
        script = buildpacks.SCRIPT
        for path, name in ((buildpacks.BUILD, "build"), (buildpacks.CACHE, "cache"), (buildpacks.APP, "app")):
            script = script.replace(f" {path}", f" {self.folder / name}")
        script = script.replace(f"{buildpacks.BELOW}/env", str(self.folder / "env"))
        (self.folder / "compile").write_text(script)
        return subprocess.run(
            ["bash", "compile", str(self.folder / "told"), *names],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def told(self, name: str) -> str:
        return (self.folder / "told" / name).read_text()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    return Sandbox(tmp_path)


def absolute(sandbox: Sandbox, *names: str) -> tuple[str, ...]:
    return tuple(str(sandbox.folder / name) for name in names)


def test_the_script_runs_one_after_another(sandbox: Sandbox) -> None:
    (sandbox.folder / "build" / ".hidden").write_text("kept")
    (sandbox.folder / "env" / "TOKEN").write_text("a secret")
    (sandbox.folder / "app" / "left").write_text("by a buildpack that looked at HOME")
    sandbox.buildpack(
        "one",
        detect="echo One",
        compile='cat "$3/TOKEN"; touch "$1/one" "$2/kept"; echo "export FROM_ONE=1" > "${0%/bin/*}/export"',
        release="echo first",
    )
    sandbox.buildpack("two", detect="echo Two", compile='echo "$FROM_ONE $PWD"', release="echo second")
    done = sandbox.run(*absolute(sandbox, "one", "two"))
    assert (done.returncode, done.stderr) == (0, "")
    build = sandbox.folder / "build"
    assert done.stdout == (f"-----> One app detected\na secret-----> Two app detected\n1 {build}\n")
    assert sandbox.told("release") == "second\n"
    assert sorted(os.listdir(sandbox.folder / "app")) == [".hidden", "one"]
    assert os.listdir(build) == []
    assert os.listdir(sandbox.folder / "cache") == ["kept"]


def test_only_the_last_buildpack_says_how_the_app_starts(sandbox: Sandbox) -> None:
    sandbox.buildpack("one", detect="true", compile="true", release="echo first")
    sandbox.buildpack("two", detect="true", compile="true")
    assert sandbox.run(*absolute(sandbox, "one", "two")).returncode == 0
    assert not (sandbox.folder / "told" / "release").exists()


@pytest.mark.parametrize(
    ("programs", "code", "told"),
    [
        ({"detect": "exit 3", "compile": "true"}, 3, "2 detect"),
        ({"detect": "true", "compile": "exit 4"}, 4, "2 compile"),
        ({"detect": "true", "compile": "true", "release": "exit 5"}, 5, "2 release"),
        ({"compile": "true"}, 1, "2 detect missing"),
        ({"detect": "true"}, 1, "2 compile missing"),
    ],
)
def test_the_script_says_what_failed(
    sandbox: Sandbox, programs: Mapping[str, str], code: int, told: str
) -> None:
    sandbox.buildpack("one", detect="true", compile="true")
    sandbox.buildpack("two", **programs)
    assert sandbox.run(*absolute(sandbox, "one", "two")).returncode == code
    assert sandbox.told("failed").strip() == told


BOTH = (Buildpack("a/a", "https://a", None), Buildpack("b/b", "https://b", None))


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("2 detect\n", "the buildpack b/b does not recognize the app"),
        ("1 compile\n", "bin/compile of the buildpack a/a ended with exit code 7"),
        ("2 release", "bin/release of the buildpack b/b"),
        ("1 detect missing", "the repository a/a is no buildpack: it has no program bin/detect"),
        ("", "the buildpacks ended with exit code 7"),
        ("9 compile", "the buildpacks ended"),
        ("0 compile", "the buildpacks ended"),
        ("x", "the buildpacks ended"),
    ],
)
def test_a_failure_in_words(told: str, words: str) -> None:
    failed = buildpacks.failure(told, 7, BOTH)
    assert words in failed.message
    # Of a program that is not there, there is no code.
    assert (failed.step, failed.exit_code) == ("build", None if "missing" in told else 7)


# --- what they say -----------------------------------------------------------------------------------------


def test_what_a_release_says() -> None:
    text = (
        "---\naddons: []\nconfig_vars:\n  LANG: C.UTF-8\n  N: 4\n  'bad name': x\n"
        "default_process_types:\n  web: node $PORT\n  'rake': bundle exec rake\n  Bad: x\n  empty: ''\n"
        "  list: [a]\n"
    )
    said = buildpacks.release(text)
    assert said.processes == {"web": "node $PORT", "rake": "bundle exec rake"}
    assert said.variables == {"LANG": "C.UTF-8", "N": "4"}


@pytest.mark.parametrize("text", ["", "--- {}\n", "nothing", "- a\n- b\n", "default_process_types: web\n"])
def test_a_release_that_says_nothing(text: str) -> None:
    assert buildpacks.release(text) == Release({}, {})


@pytest.mark.parametrize("text", ["a: b: c", "[" * 5000, "!!python/object/apply:os.system [id]", "a: &x [*x"])
def test_a_release_that_is_not_yaml(text: str) -> None:
    with pytest.raises(StepFailed, match="is not YAML"):
        buildpacks.release(text)


def test_a_release_is_no_bomb() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    assert buildpacks.release("\n".join([*lines, "default_process_types: *a29"])) == Release({}, {})


def test_which_processes_there_are() -> None:
    said = Release({"web": "proposed", "console": "irb"}, {})
    assert buildpacks.processes(said, {}, None) == {"web": "proposed", "console": "irb"}
    assert buildpacks.processes(said, {"web": "own"}, None)["web"] == "own"
    assert buildpacks.processes(said, {"web": "own"}, "chosen")["web"] == "chosen"
    with pytest.raises(StepFailed, match="nothing says how the app is started") as failed:
        buildpacks.processes(Release({}, {}), {}, None)
    assert "Procfile" in (failed.value.hint or "")


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=80))
def test_a_command_reaches_the_launcher_whole(command: str) -> None:
    read = subprocess.run(
        ["/bin/sh", "-c", buildpacks.launched(command).replace(buildpacks.LAUNCH, "printf %s")],
        capture_output=True,
        check=True,
    )
    assert read.stdout.decode() == command


def test_the_launcher_prepares_what_it_starts(tmp_path: Path) -> None:
    (tmp_path / ".profile.d").mkdir()
    (tmp_path / ".profile.d" / "b.sh").write_text("export B=$A-then-b\n")
    (tmp_path / ".profile.d" / "a.sh").write_text("export A=first\n")
    (tmp_path / ".profile.d" / "c.txt").write_text("exit 9\n")
    (tmp_path / ".profile").write_text("export P=own\n")
    launcher = tmp_path / "launch"
    launcher.write_text(
        buildpacks.LAUNCHER.replace(f"={buildpacks.APP}", f"={tmp_path}").replace(
            f"cd {buildpacks.APP}", f"cd {tmp_path}"
        )
    )
    done = subprocess.run(
        ["bash", str(launcher), 'echo "$B $P $HOME $PWD $# $GIVEN"; exit 6'],
        capture_output=True,
        text=True,
        check=False,
        env={"GIVEN": "by the platform", "PATH": os.environ["PATH"]},
    )
    assert done.stdout == f"first-then-b own {tmp_path} {tmp_path} 0 by the platform\n"
    assert (done.returncode, done.stderr) == (6, "")


def test_the_image_of_an_app() -> None:
    base = {"Env": ["PATH=/bin", "HOME=/root"], "Cmd": ["bash"], "Labels": {"a": "b"}, "Volumes": {"/x": {}}}
    config = buildpacks.config(base, "heroku-22", 100_001, {"LANG": "C"}, "node .")
    assert config == {
        "Env": ["PATH=/bin", "HOME=/app", "STACK=heroku-22", "LANG=C"],
        "Entrypoint": ["/launch"],
        "Cmd": ["node ."],
        "WorkingDir": "/app",
        "User": "100001:100001",
    }
    assert json.dumps(config)


def test_what_is_packed_belongs_to_who_works_with_it() -> None:
    archive, packed = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, kind, mode in (
            ("top/web/deep/run", tarfile.REGTYPE, 0o755),
            ("top/web/link", tarfile.SYMTYPE, 0o777),
            ("top/.git/config", tarfile.REGTYPE, 0o644),
            ("top/other/file", tarfile.REGTYPE, 0o600),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = kind, mode, 7
            info.linkname = "deep/run" if kind == tarfile.SYMTYPE else ""
            tar.addfile(info)
    pack = Pack(packed, 1001, 1000)
    pack.tree("/workspace", archive, ArchiveLimits(100, 1000, links=True), "top/web/")
    pack.file("/a/b/c", b"text", 0o600)
    pack.close()
    with tarfile.open(fileobj=packed) as tar:
        found = {member.name: member for member in tar}
    assert list(found) == [
        "workspace",
        "workspace/deep",
        "workspace/deep/run",
        "workspace/link",
        "a/b",
        "a/b/c",
    ]
    assert {(member.uid, member.gid) for member in found.values()} == {(1001, 1000)}
    assert found["workspace/deep/run"].mode == 0o755
    assert found["workspace/link"].linkname == "deep/run"
    assert found["a/b/c"].mode == 0o600
