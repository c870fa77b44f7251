"""Buildpacks of the classic kind: `bin/detect`, `bin/compile`, `bin/release`, as Heroku defined them. PURE.

Which ones an app is built with, the script that runs them one after another in the build's sandbox, and what
becomes of their words: processes, variables, the start of every process. `classic.py` carries it out.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from contracts.buildpack import MOST, Buildpack, parse
from contracts.errors import InvalidInput

from builder.image_builder import StepFailed

LIST = ".buildpacks"
# Where things lie in the sandbox.
BUILD, CACHE, APP = "/tmp/build", "/cache", "/app"  # noqa: S108
BELOW = "/berth"
LAUNCH = "/launch"
LARGEST_RELEASE = 64 * 1024

_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,126}$")
_LONGEST = 2000
_PROCFILE = "Add a Procfile with a line such as `web: node server.js`, which listens on $PORT."
_PROCESS = re.compile(r"^[a-z0-9][a-z0-9_-]{0,38}$")

# $1: a folder for what the builder is to know afterwards; then the buildpacks, in their order. An `export` is
# read into this very shell: what it sets is for the buildpacks that follow.
SCRIPT = f"""\
#!/bin/bash
told=$1
shift
failed() {{
  echo "$1" > "$told/failed"
  exit "$2"
}}
mkdir -p {BUILD} {CACHE} {APP}
number=0
for buildpack in "$@"; do
  number=$((number + 1))
  cd {BUILD}
  for program in detect compile; do
    [ -x "$buildpack/bin/$program" ] || failed "$number $program missing" 1
  done
  found=$("$buildpack/bin/detect" {BUILD}) || {{
    code=$?
    [ -z "$found" ] || echo "$found"
    failed "$number detect" $code
  }}
  echo "-----> $found app detected"
  "$buildpack/bin/compile" {BUILD} {CACHE} {BELOW}/env || failed "$number compile" $?
  if [ -f "$buildpack/export" ]; then
    . "$buildpack/export"
  fi
  if [ -x "$buildpack/bin/release" ]; then
    "$buildpack/bin/release" {BUILD} > "$told/release" || failed "$number release" $?
  else
    rm -f "$told/release"
  fi
done
shopt -s dotglob nullglob
cd {APP} || exit 1
rm -rf -- ./*
set -- {BUILD}/*
[ $# = 0 ] || mv -- "$@" {APP}/
"""

# The first process of a container, so that every command finds what its buildpacks prepared.
LAUNCHER = f"""\
#!/bin/bash
command=$1
set --
export HOME={APP}
cd {APP}
for file in .profile.d/*.sh; do
  if [ -r "$file" ]; then . "./$file"; fi
done
if [ -r .profile ]; then . ./.profile; fi
exec bash -c "${{command:-bash}}"
"""


@dataclass(frozen=True, slots=True)
class Classic:
    """How an app is made: the buildpacks in their order, on a stack that is a pair of images."""

    buildpacks: tuple[Buildpack, ...]
    stack: str
    image: str
    build_image: str
    start: str | None


@dataclass(frozen=True, slots=True)
class Release:
    """What the last buildpack knows of the app."""

    processes: Mapping[str, str]
    variables: Mapping[str, str]


def chosen(settings: Sequence[str], listed: str | None) -> tuple[Buildpack, ...]:
    """The app's settings come first; without any, the list in its source."""
    names = list(settings)
    if not names and listed is not None:
        lines = (line.strip() for line in listed.removeprefix("\ufeff").splitlines())
        names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise _wrong(f"{LIST} names none")
    if len(names) > MOST:
        raise _wrong(f"there are more than {MOST}")
    try:
        # Whether an address without TLS may be asked is decided when it is.
        return tuple(parse(name, allow_http=True) for name in names)
    except InvalidInput as error:
        raise _wrong(error.message) from error


def environment(stack: str, build: str, commit: str | None, ca_bundle: str | None) -> dict[str, str]:
    """Of the buildpacks themselves. The app's variables they read from files, each as it likes."""
    said = {"STACK": stack, "HOME": APP, "REQUEST_ID": build}
    if commit is not None:
        said["SOURCE_VERSION"] = commit
    return said | trust(ca_bundle)


def trust(ca_bundle: str | None) -> dict[str, str]:
    """The ways programs are told where the certificates lie that they are to trust."""
    if ca_bundle is None:
        return {}
    names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT", "REQUESTS_CA_BUNDLE")
    return dict.fromkeys((*names, "NODE_EXTRA_CA_CERTS"), ca_bundle)


def failure(told: str, exit_code: int, buildpacks: Sequence[Buildpack]) -> StepFailed:
    """`told` is the note the script has left; a script that was killed leaves none."""
    number, _, step = told.strip().partition(" ")
    if not number.isdecimal() or not 0 < int(number) <= len(buildpacks):
        return StepFailed("build", f"the buildpacks ended with exit code {exit_code}", exit_code=exit_code)
    name = buildpacks[int(number) - 1].name
    if step == "detect":
        return StepFailed(
            "build",
            f"the buildpack {name} does not recognize the app (bin/detect, exit code {exit_code})",
            exit_code=exit_code,
            hint="Look at what this buildpack asks of an app, or choose another one in the build settings.",
        )
    if step.endswith(" missing"):
        program = step.partition(" ")[0]
        return StepFailed(
            "build",
            f"the repository {name} is no buildpack: it has no program bin/{program}",
            hint="A buildpack for Cloud Native Buildpacks needs a builder image instead.",
        )
    return StepFailed(
        "build", f"bin/{step} of the buildpack {name} ended with exit code {exit_code}", exit_code=exit_code
    )


def release(text: str) -> Release:
    try:
        read = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        problem = str(error).partition("\n")[0]
        raise StepFailed("build", f"what bin/release says is not YAML: {problem}") from error
    if not isinstance(read, dict):
        read = {}
    processes = {
        name: command.strip()
        for name, command in _texts(read.get("default_process_types")).items()
        if _PROCESS.match(name) and 0 < len(command.strip()) <= _LONGEST and "\0" not in command
    }
    variables = {
        name: value
        for name, value in _texts(read.get("config_vars")).items()
        if _VARIABLE.match(name) and "\0" not in value
    }
    return Release(processes, variables)


def _texts(found: Any) -> dict[str, str]:
    """What YAML takes for a number or a truth is meant as it is written, or nearly so."""
    if not isinstance(found, dict):
        return {}
    return {str(name): str(value) for name, value in found.items() if isinstance(value, str | int | float)}


def processes(found: Release, listed: Mapping[str, str], start: str | None) -> dict[str, str]:
    """What the app's own Procfile says wins over what its buildpack proposes, and its settings over both."""
    merged = {**found.processes, **listed}
    if start is not None:
        merged["web"] = start
    if not merged:
        raise StepFailed(
            "build",
            "nothing says how the app is started: it has no Procfile, and its buildpack proposes nothing",
            hint=_PROCFILE,
        )
    return merged


def launched(command: str) -> str:
    """As a node starts it: a shell reads this, and the launcher gets the command whole."""
    return f"{LAUNCH} {shlex.quote(command)}"


def config(
    base: Mapping[str, Any], stack: str, uid: int, variables: Mapping[str, str], web: str | None
) -> dict[str, Any]:
    """The app's image as the engine shall know it."""
    said = {"HOME": APP, "STACK": stack, **variables}
    kept = [entry for entry in base.get("Env") or () if entry.partition("=")[0] not in said]
    return {
        "Env": [*kept, *(f"{name}={value}" for name, value in said.items())],
        "Entrypoint": [LAUNCH],
        "Cmd": [web] if web is not None else None,
        "WorkingDir": APP,
        "User": f"{uid}:{uid}",
    }


def _wrong(why: str) -> StepFailed:
    return StepFailed(
        "recipe",
        f"the app's buildpacks cannot be used: {why}",
        hint="Name each by a known name such as heroku/nodejs, or as https://host/path#branch.",
    )
