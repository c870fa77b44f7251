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
