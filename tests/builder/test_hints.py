import pytest
from builder.hints import hint_for, is_ours

CASES = {
    "out of memory": ("`RUN x` ended with exit code 137", [], "memory"),
    "disk full": ("`RUN x` ended with exit code 1", ["write: No space left on device"], "disk"),
    "no such package": (
        "exit code 1",
        ["ERROR: No matching distribution found for flaskk"],
        "requirements.txt",
    ),
    "conflict": ("exit code 1", ["ERROR: ResolutionImpossible: for help"], "Loosen"),
    "hash": ("exit code 1", ["ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM"], "Lock"),
    "certificate": ("exit code 1", ["ssl.SSLError: CERTIFICATE_VERIFY_FAILED"], "CA"),
    "network": ("exit code 6", ["curl: (6) Could not resolve host: db.internal"], "private network"),
    "an index out of reach": (
        "exit code 1",
        [
            "WARNING: Retrying after connection broken by 'ConnectTimeoutError'",
            "ERROR: No matching distribution found for x",
        ],
        "could not be reached",
    ),
    "compiler": ("exit code 1", ["error: command 'gcc' failed: No such file"], "compiled"),
    "BuildKit": ("the --mount option requires BuildKit. Refer to", [], "BuildKit"),
    "syntax": ("dockerfile parse error line 3: unknown instruction: RNU", [], "mistake"),
    "copy": (
        "COPY failed: file not found in build context or excluded by .dockerignore",
        [],
        ".dockerignore",
    ),
    "base image": ("pull access denied for nobody/nothing, repository does not exist", [], "base image"),
    "private repository": ("could not read Username for 'https://x'", [], "private"),
    "no such branch": ("couldn't find remote ref nope", [], "branch"),
    "moved": ("unable to access 'x': The requested URL returned error: 301", [], "moved"),
    "permission": ("exit code 126", ["/bin/sh: ./run: Permission denied"], "chmod"),
    "processes": ("exit code 1", ["sh: 1: Cannot fork"], "processes"),
    "missing program": ("`RUN x` ended with exit code 127", [], "program"),
    "Node's heap": (
        "`RUN x` ended with exit code 134",
        ["FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory"],
        "NODE_OPTIONS",
    ),
    "npm ci": (
        "exit code 1",
        ["npm error `npm ci` can only install packages when your package.json and lock file fit"],
        "package.json",
    ),
    "npm's peers": (
        "exit code 1",
        ["npm ERR! code ERESOLVE", "npm ERR! ERESOLVE unable to resolve"],
        "exclude",
    ),
    "no such module of Node": ("exit code 1", ["npm ERR! code E404", "npm ERR! 404 Not Found"], "registry"),
    "npm wants a token": ("exit code 1", ["npm error code E401"], "token"),
    "npm run": ("exit code 1", ['npm error Missing script: "build"'], "scripts"),
    "another Node": ("exit code 1", ['error The engine "node" is incompatible with this module.'], "engines"),
    "an import": ("exit code 1", ["Error: Cannot find module 'express'"], "dependencies"),
    "TypeScript": ("exit code 2", ["src/a.ts(3,1): error TS2304: Cannot find name 'x'."], "file and line"),
    "pnpm's lock": ("exit code 1", [" ERR_PNPM_OUTDATED_LOCKFILE  Cannot install"], "lock file"),
    "another Python": (
        "exit code 1",
        ["ERROR: Package 'x' requires a different Python: 3.11.2 not in '>=3.12'"],
        "version of Python",
    ),
    "poetry's lock": (
        "exit code 1",
        ["pyproject.toml changed significantly since poetry.lock was"],
        "Lock again",
    ),
    "PHP's extension": (
        "exit code 2",
        ["- the requested PHP extension gd is missing from your"],
        "extension",
    ),
    "composer": (
        "exit code 2",
        ["Your requirements could not be resolved to an installable set of packages."],
        "composer update",
    ),
    "Ruby": ("exit code 18", ["Your Ruby version is 3.1.2, but your Gemfile specified 3.3.0"], "Gemfile"),
    "a gem": ("exit code 7", ["Could not find gem 'railss' in rubygems repository"], "bundle lock"),
    "a bundle for a Mac": (
        "exit code 16",
        ['Your bundle only supports platforms ["arm64-darwin-23"]'],
        "x86_64-linux",
    ),
    "a gem to compile": ("exit code 5", ["ERROR: Failed to build gem native extension."], "compiled"),
    "go.sum": (
        "exit code 1",
        ["main.go:4:2: missing go.sum entry for module providing package x"],
        "go mod tidy",
    ),
    "another Go": ("exit code 1", ["go: go.mod requires go >= 1.99 (running go 1.19)"], "newer Go"),
    "another Java": ("exit code 1", ["Fatal error compiling: error: invalid target release: 21"], "Java"),
    "Maven": ("exit code 1", ["Could not resolve dependencies for project org.example:x"], "Maven"),
    "javac": ("exit code 1", ["[ERROR] COMPILATION ERROR :"], "compile"),
    "the app's tests": ("exit code 1", ["[ERROR] There are test failures."], "tests"),
    "apt": ("exit code 100", ["E: Unable to locate package libfoo"], "apt-get update"),
    "a processor": ("exit code 1", ["exec /bin/x: exec format error"], "processor"),
    "a deploy key": ("exit code 128", ["git@example.org: Permission denied (publickey)."], "deploy key"),
    "a submodule": (
        "exit code 128",
        ["fatal: No url found for submodule path 'x' in .gitmodules"],
        ".gitmodules",
    ),
    "line ends": (
        "exit code 127",
        ["/bin/sh: 1: ./run.sh\\r: not found", "env: 'bash\\r': No such file"],
        "Windows",
    ),
    "time": ("the build was not done within 30 minutes", [], "too long"),
}


@pytest.mark.parametrize(("message", "lines", "words"), CASES.values(), ids=CASES.keys())
def test_hint(message: str, lines: list[str], words: str) -> None:
    hint = hint_for(message, ["something before", *lines, "something after"])
    assert hint is not None
    assert words in hint


def test_no_hint_is_better_than_a_wrong_one() -> None:
    assert hint_for("`RUN make` ended with exit code 2", ["all good so far", "make: *** [x] Error 2"]) is None


@pytest.mark.parametrize(
    "message",
    [
        "write /var/lib/docker/x: no space left on device",
        'Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io: i/o timeout',
        "toomanyrequests: You have reached your pull rate limit",
        "network berth-build not found",
    ],
)
def test_what_is_ours(message: str) -> None:
    assert is_ours(message)


@pytest.mark.parametrize(
    "message",
    [
        "COPY failed: file not found in build context",
        'OCI runtime create failed: exec: "nope": executable file not found in $PATH: unknown',
        "manifest for python:9.99 not found: manifest unknown",
        "dockerfile parse error line 1: unknown instruction: FORM",
    ],
)
def test_what_is_the_customers(message: str) -> None:
    assert not is_ours(message)
