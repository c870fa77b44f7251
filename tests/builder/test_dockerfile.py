"""What a Dockerfile may name: the engine would take a few digits for any image, and fetch any address."""

import json

import pytest
from builder.dockerfile import bases, renamed, triggers
from builder.image_builder import StepFailed

GOOD = {
    "plain": ("FROM python:3.12\nRUN x", ("python:3.12",)),
    "stages": (
        "FROM golang:1.22 AS Build\nFROM scratch\nCOPY --from=build /x /x\nCOPY --from=0 /y /y\n",
        ("golang:1.22",),
    ),
    "from a stage": ("FROM alpine:3 AS base\nFROM base\nFROM BASE AS last\n", ("alpine:3",)),
    "copies from an image": (
        "FROM alpine:3\nCOPY --chown=1:1 --from=nginx:1.27 /a /b\n",
        ("alpine:3", "nginx:1.27"),
    ),
    "arguments": (
        'ARG VERSION="3.12"\nARG TAG=${VERSION}-slim OTHER=x\nFROM python:$TAG\nFROM a:${MISSING:-1} AS z\n',
        ("python:3.12-slim", "a:1"),
    ),
    "alternative": ("ARG A=1\nFROM img:${A:+yes}${B:+no}\n", ("img:yes",)),
    "platform": ("FROM --platform=linux/amd64 alpine:3 AS x", ("alpine:3",)),
    "digest": (f"FROM alpine@sha256:{'a' * 64}", (f"alpine@sha256:{'a' * 64}",)),
    "lower case, continued, commented": (
        "# syntax=docker/dockerfile:1\n# escape=\\\n\n"
        "  from \\\n# why\n\n   alpine:3 \\\n as x\nRUN echo FROM ab\n",
        ("alpine:3",),
    ),
    "a query in a step": (
        "FROM a:1\nRUN psql -c 'select 1 \\\n  FROM ab' && \\\n  ADD http://x y\n",
        ("a:1",),
    ),
    "local files added": (
        'FROM a:1\nADD app-${V}.tar.gz /opt/\nADD ["a b", "/x"]\nADD ./x.tar /\n',
        ("a:1",),
    ),
    "windows line ends": ("FROM a:1\r\nRUN x \\\r\n  y\r\nCOPY --from=b:2 a b\r\n", ("a:1", "b:2")),
    "an image's name with digits": ("FROM deadbeef:1", ("deadbeef:1",)),
    "onbuild": ("FROM a:1\nONBUILD COPY --from=b:2 / /\n", ("a:1", "b:2")),
}


@pytest.mark.parametrize(("text", "found"), GOOD.values(), ids=GOOD.keys())
def test_finds_what_is_built_on(text: str, found: tuple[str, ...]) -> None:
    assert bases(text) == found


BY_ID, PLAIN, ADDRESS, TWO_WAYS = "by the id", "plainly", "ADD with an address", "in two ways"
BAD = {
    "id": ("FROM ab", BY_ID),
    "long id": (f"FROM {'a' * 64}", BY_ID),
    "id with algorithm": ("FROM sha256:ab12", BY_ID),
    "id in capitals": ("FROM AB", BY_ID),
    "id by argument": ("ARG X=ab\nFROM $X", BY_ID),
    "id by parts": ("ARG X=a\nARG Y=${X}b\nFROM ${Y}${Z:-c}", BY_ID),
    "id after a stage": ("FROM scratch AS x\nFROM ab", BY_ID),
    "id copied from": ("FROM scratch\nCOPY --from=ab / /", BY_ID),
    "id added from": ("FROM scratch\nADD --from=ab / /", BY_ID),
    "id as the stage's own name": ("FROM scratch AS ab\nCOPY --from=ab / /", BY_ID),
    "index of the stage itself": ("FROM scratch\nCOPY --from=0 / /", BY_ID),
    "index of no stage": ("FROM scratch AS a\nFROM scratch\nCOPY --from=7 / /", BY_ID),
    "id after an odd space": ("FROM scratch\nCOPY --chown=1\u00a0--from=ab / /", BY_ID),
    "id on the next line": ("FROM \\\nab", BY_ID),
    "id in onbuild": ("FROM a:1\nONBUILD COPY --from=ab / /", BY_ID),
    "quoted": ('FROM "ab"', PLAIN),
    "escaped": ("FROM a\\b", PLAIN),
    "single quotes": ("ARG X=a'b'\nFROM $X", PLAIN),
    "odd variable": ("FROM ${X-ab}", PLAIN),
    "nested variable": ("FROM ${X:-${Y}}", PLAIN),
    "quoted flag": ('FROM scratch\nCOPY --fr"om"=ab / /', "quotes the flag"),
    "variable in a flag": ("FROM scratch\nCOPY --from=$X / /", "not a valid name"),
    "nothing": ("FROM", "names no image"),
    "undefined": ("FROM $NOTHING", "names no image"),
    "address": ("FROM a:1\nADD http://169.254.169.254/latest /x", ADDRESS),
    "secure address": ("FROM a:1\nadd --chown=1:1 https://x/y /x", ADDRESS),
    "second source": ("FROM a:1\nADD a.txt http://x/y /x", ADDRESS),
    "quoted address": ('FROM a:1\nADD "http://x" /x', ADDRESS),
    "escaped address": ("FROM a:1\nADD ht\\tp://x /x", ADDRESS),
    "address in a list": ('FROM a:1\nADD ["\\u0068ttp://x", "/x"]', ADDRESS),
    "address by variable": ("FROM a:1\nENV U=http://x\nADD $U /x", ADDRESS),
    "address by parts": ("FROM a:1\nENV U=tp://x\nADD ht${U} /x", ADDRESS),
    "address in onbuild": ("FROM a:1\nONBUILD ADD http://x /x", ADDRESS),
    "many volumes": ("FROM a:1\n" + "VOLUME /a /b /c\n" * 3, "more than 8 volumes"),
    "a list of volumes": (
        f"FROM a:1\nVOLUME {json.dumps([f'/{number}' for number in range(9)])}",
        "more than 8 volumes",
    ),
    "escape character": ("# escape=`\nFROM a:1", "escape character"),
    "two backslashes": ("FROM a:1\nRUN x \\\\\nFROM ab\n", TWO_WAYS),
    "indented comment": ("FROM a:1\nRUN x \\\n  # why\nFROM ab\n", TWO_WAYS),
}


@pytest.mark.parametrize(("text", "words"), BAD.values(), ids=BAD.keys())
def test_refuses(text: str, words: str) -> None:
    with pytest.raises(StepFailed) as failed:
        bases(text)
    assert failed.value.step == "recipe"
    assert words in failed.value.message


def test_triggers_of_a_base_image() -> None:
    assert triggers(["RUN x", "COPY --from=b:2 / /"]) == ("b:2",)
    with pytest.raises(StepFailed, match="ONBUILD instruction of the base image"):
        triggers(["COPY --from=ab / /"])
    with pytest.raises(StepFailed, match="more than 8 volumes"):
        triggers(["VOLUME /a /b /c /d /e", "VOLUME /f /g /h /i"])
    with pytest.raises(StepFailed, match="ADD with an address"):
        triggers(["ADD http://x /y"])


PRIVATE = {"ghcr.io/a/b:1": "here/1", "ghcr.io/a/c:2": "here/2"}
RENAMED = {
    "plain": ("FROM ghcr.io/a/b:1\nRUN x\n", "FROM here/1\nRUN x\n"),
    "by arguments": (
        "ARG T=1\nFROM --platform=x/y ghcr.io/a/b:${T} AS one\nFROM one\nCOPY --from=ghcr.io/a/c:2 x y",
        "ARG T=1\nFROM --platform=x/y here/1 AS one\nFROM one\nCOPY --from=here/2 x y",
    ),
    "continued": (
        "FROM \\\n# ghcr.io/a/b:1\n  ghcr.io/a/b:1 \\\n  AS x\nRUN echo FROM ghcr.io/a/b:1\n",
        "FROM \\\n# ghcr.io/a/b:1\n  here/1 \\\n  AS x\nRUN echo FROM ghcr.io/a/b:1\n",
    ),
    "others": ("FROM ghcr.io/a/b:11\nFROM alpine:3", "FROM ghcr.io/a/b:11\nFROM alpine:3"),
}


@pytest.mark.parametrize(("text", "wanted"), RENAMED.values(), ids=RENAMED.keys())
def test_private_images_have_names_of_their_own(text: str, wanted: str) -> None:
    assert renamed(text, PRIVATE, {}) == wanted
    assert bases(wanted, {}) == tuple(PRIVATE.get(name, name) for name in bases(text))


def test_a_private_image_is_named_in_one_piece() -> None:
    with pytest.raises(StepFailed, match="write its name plainly"):
        renamed("FROM ghcr.io/\\\na/b:1\n", PRIVATE, {})
