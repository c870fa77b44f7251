"""Buildpacks of the classic kind, as customers name them: a repository's address, or a known name. PURE.

`https://host/path#branch-or-tag`, or `heroku/nodejs`, again with `#…` if need be. Gateway and builder read
them by the same rules.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from contracts import git_address
from contracts.errors import InvalidInput

MOST = 10

_GITHUB = "https://github.com/heroku/heroku-buildpack-"
# The names Heroku's own buildpacks go by, and their repositories.
KNOWN: Mapping[str, str] = {
    **{
        f"heroku/{name}": f"{_GITHUB}{name}"
        for name in ("clojure", "dotnet", "go", "gradle", "java", "nodejs", "php", "python", "ruby", "scala")
    },
    "heroku/jvm": f"{_GITHUB}jvm-common",
    "heroku/chrome-for-testing": f"{_GITHUB}chrome-for-testing",
    "heroku-community/apt": f"{_GITHUB}apt",
    "heroku-community/multi-procfile": f"{_GITHUB}multi-procfile",
    "heroku-community/nginx": f"{_GITHUB}nginx",
    "heroku-community/static": f"{_GITHUB}static",
}
_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,60}/[a-z0-9][a-z0-9-]{0,60}")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}")


@dataclass(frozen=True, slots=True)
class Buildpack:
    """`name` is what the app calls it."""

    name: str
    url: str
    ref: str | None


def parse(name: str, *, allow_http: bool = False) -> Buildpack:
    text, hash_sign, ref = name.partition("#")
    if hash_sign and not _REF.fullmatch(ref):
        raise _refused(name, "names no branch, tag or commit after its #")
    if _SLUG.fullmatch(text):
        if text not in KNOWN:
            raise _refused(name, f"is not known by this name; known are {', '.join(KNOWN)}")
        return Buildpack(name, KNOWN[text], ref or None)
    try:
        address = git_address.parse(text, allow_http=allow_http)
    except InvalidInput:
        address = None
    if address is None or address.scheme == "ssh":
        raise _refused(name, "is no name such as heroku/nodejs and no https:// address of a repository")
    return Buildpack(name, text, ref or None)


def _refused(name: str, why: str) -> InvalidInput:
    return InvalidInput(f"the buildpack {name[:200]!r} {why}", buildpack=name[:200])
