"""What must not be read in a log is not, however a build says it."""

import base64
import json
import time
from urllib.parse import quote

import pytest
from builder.build_output import BuildOutput
from builder.masking import MASK, Mask

SECRET = 'p@ss "word" + more'
KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\nq83vASNFZ4k=\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    "said",
    [
        SECRET,
        json.dumps(SECRET)[1:-1],
        quote(SECRET, safe=""),
        base64.b64encode(SECRET.encode()).decode(),
        "\x1b[31mp@ss \x1b[0m\"word\" + more",
    ],
)  # fmt: skip
def test_a_secret_in_every_form_it_is_said_in(said: str) -> None:
    found = Mask([SECRET]).lines("stdout", f"before {said} after")
    assert found.startswith(f"before {MASK}")
    assert "after" in found
    assert "word" not in found


def test_every_line_of_a_secret_of_several() -> None:
    mask = Mask(["first line\nsecond one\n}\n"])
    assert mask.lines("stdout", "a first line\nb second one.\n}") == f"a {MASK}\nb {MASK}.\n}}"


def test_the_longest_secret_goes_first() -> None:
    assert Mask(["hunter", "hunter22-long"]).words("hunter22-long") == MASK


def test_what_is_short_or_common_stays_readable() -> None:
    mask = Mask(["", "1", "true", "production", "8080", "127.0.0.1", "debug"])
    assert mask.words("npm install --production on 8080: true") == "npm install --production on 8080: true"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("cloning https://user:tok3n@example.org/x.git", f"cloning https://{MASK}@example.org/x.git"),
        ("'https://ghp_abc@example.org/x'", f"'https://{MASK}@example.org/x'"),
        ("postgres://u:p@db:5432/x", f"postgres://{MASK}@db:5432/x"),
        (
            "GET https://example.org/x?a=1&access_token=abc&b=2",
            f"GET https://example.org/x?a=1&access_token={MASK}&b=2",
        ),
        ("> Authorization: Bearer abc.def", f"> Authorization: Bearer {MASK}"),
        ("see https://example.org/a?page=2", "see https://example.org/a?page=2"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_addresses_that_carry_a_token(said: str, shown: str) -> None:
    assert Mask().words(said) == shown


def test_a_private_key_nobody_told_us_of() -> None:
    mask = Mask()
    begin, *middle, end = KEY.split("\n")
    assert mask.lines("stdout", f"cat key\n{begin}\n{middle[0]}") == f"cat key\n{MASK}\n{MASK}"
    # What another stream says meanwhile is none of it.
    assert mask.lines("stderr", "warning") == "warning"
    assert mask.lines("stdout", f"{middle[1]}\n{end}\ndone") == f"{MASK}\n{MASK}\ndone"
    assert mask.lines("stdout", "-----BEGIN CERTIFICATE-----\nMIIE") == "-----BEGIN CERTIFICATE-----\nMIIE"
    assert Mask().lines("stdout", f"{begin}\n" + "x\n" * 500 + "seen").endswith("x\nseen")


def test_a_secret_the_engine_hands_over_in_parts() -> None:
    output, mask = BuildOutput(), Mask(["correct-horse"])
    shown = []
    for part in ("say corr", "ect-hor", "se now\nnext"):
        chunk = json.dumps({"stream": part}).encode() + b"\r\n"
        for half in (chunk[:7], chunk[7:]):
            shown += [mask.lines(*said) for said in output.feed(half)]
    shown += [mask.lines(*said) for said in output.end()]
    assert shown == [f"say {MASK} now", "next"]


def test_a_line_without_end_shows_only_its_beginning() -> None:
    output = BuildOutput()
    said = list(output.feed(json.dumps({"stream": "x" * 65_530 + "correct-"}).encode() + b"\r\n"))
    said += output.feed(json.dumps({"stream": "horse" + "y" * 100_000}).encode() + b"\r\n")
    said += output.feed(json.dumps({"stream": "correct-horse\nend\n"}).encode() + b"\r\n")
    [(_, text)] = said
    line, end = text.split("\n")
    assert (len(line) < 70_000, line[:65_530], end) == (True, "x" * 65_530, "end")


def test_fast_enough_for_a_storm() -> None:
    mask = Mask([f"a secret of number {number}" for number in range(50)])
    text = "\n".join(
        f"line {number} of a long log, with https://example.org in it" for number in range(10_000)
    )
    began = time.perf_counter()
    assert mask.lines("stdout", text) == text
    assert time.perf_counter() - began < 0.5
