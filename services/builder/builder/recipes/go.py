"""Go modules: every program of one is built; the one named `web`, or like the module, is started. PURE."""

import re

from builder.image_builder import StepFailed
from builder.recipes.case import Case, Detector, Recipe, Source
from builder.recipes.rendering import build_stage, copy, copy_source, finished, run, run_stage, runs

_MODULE = re.compile(r"^module\s+\"?([^\s\"]+)", re.MULTILINE)
_GENERATION = re.compile(r"^v\d+$")
_PROGRAM = re.compile(r"^cmd/([^/]+)/[^/]+\.go$")
_BIN = "/opt/go/bin"


def programs_of(source: Source) -> dict[str, str]:
    """Name of a program -> its package, the likeliest to be the web process first."""
    found: dict[str, str] = {}
    if any(not name.endswith("_test.go") for name in source.at_root(".go")):
        found[_last(source)] = "."
    inner = sorted({match[1] for name in source.names if (match := _PROGRAM.match(name))})
    for name in sorted(inner, key=lambda name: name not in ("web", "server")):
        found.setdefault(name, f"./cmd/{name}")
    return found


def _last(source: Source) -> str:
    """As `go install` names it: the last part of the module's path that is no version."""
    found = _MODULE.search(source.text("go.mod"))
    if found is None:
        raise StepFailed("recipe", "go.mod names no module")
    parts = [part for part in found[1].split("/") if not _GENERATION.match(part)]
    return parts[-1] if parts and re.fullmatch(r"[A-Za-z0-9._-]+", parts[-1]) else "app"


def _recipe(case: Case) -> Recipe:
    source = case.source
    preset = case.preset("go", "Go")
    programs = programs_of(source)
    name = "web" if "web" in programs else next(iter(programs), None)
    processes = case.started(preset, name, "server")
    install = case.install_command(preset, None)
    vendored = "vendor/modules.txt" in source.names
    build = build_stage(
        case,
        preset,
        f"ENV CGO_ENABLED=0 GOBIN={_BIN} GOPATH=/opt/gopath GOCACHE=/opt/gocache GOFLAGS=-trimpath",
    )
    whole = bool(install) or vendored or "go.work" in source.names
    if not whole:
        build += [*copy(source.of("go.mod", "go.sum")), run("go mod download")]
    build += [copy_source(), *runs((install,))]
    compiled = " && ".join(
        f"go build -ldflags '-s -w' -o {_BIN}/{program} {package}" for program, package in programs.items()
    )
    build += [run(case.build_command(preset, compiled or None) or f"go build -o {_BIN}/ ./...")]
    running = run_stage(preset.image, f"PATH={_BIN}:$PATH", processes["web"])
    running += [f"COPY --from=build {_BIN}/ {_BIN}/"]
    running += ["COPY --from=build /app ./"] if case.build_command(preset) else [copy_source()]
    made = f", which makes {', '.join(programs)}" if programs else ""
    return finished(
        case,
        preset,
        (build, running),
        processes,
        (f"Found go.mod: a Go module{made}, built with the runtime {preset.name}.",),
    )


GO = Detector(
    name="go",
    looks_for="go.mod (Go)",
    reads=("go.mod",),
    named=lambda case: case.names_runtime("go"),
    found=lambda case: "go.mod" in case.source.names,
    recipe=_recipe,
)
