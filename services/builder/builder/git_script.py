"""What runs inside the container a repository is fetched in, and what it says. PURE.

There a shell is as confined as Git is. $1 is the repository, $2 the ref. It answers in lines of a word and
base64, for names and messages are whatever their author made them.
"""

import base64
import binascii
from collections.abc import Sequence

from builder.image_builder import Fetched, StepFailed, Submodule

CA = "/tmp/ca.pem"  # noqa: S108
CONFIG = "/tmp/gitconfig"  # noqa: S108
KEY = "/tmp/key"  # noqa: S108
KNOWN_HOSTS = "/tmp/known_hosts"  # noqa: S108
TREE = "/tmp/source.tar"  # noqa: S108
UNKNOWN_HOST = 66

# GitLab answers an address without `.git` with a redirect, which is not followed: it is tried with one.
# A host without a known key is not connected to with the app's key; it is only asked for its own.
SCRIPT = f"""\
set -eu
if [ -n "${{PLACE:-}}" ] && ! ssh-keygen -F "$PLACE" -f {KNOWN_HOSTS} > /dev/null; then
    ssh-keyscan -T 10 -p "$PORT" "$HOST" 2> /dev/null | grep -v '^#' | cut -d ' ' -f 2- >&2 || true
    exit {UNKNOWN_HOST}
fi
git init --quiet --bare /tmp/repository
cd /tmp/repository
printf '* -export-ignore -export-subst\\n' > info/attributes
fetch() {{ git fetch --quiet --depth=1 --no-tags --no-recurse-submodules -- "$1" "$2"; }}
fetch "$1" "$2" || {{ case "$1" in *.git) exit 128;; esac; fetch "$1.git" "$2"; }}
commit=$(git rev-parse --verify --quiet 'FETCH_HEAD^{{commit}}')
say() {{ printf '%s ' "$1"; head --bytes=60000 | base64 --wrap=0; echo; }}
git log -1 --format=%an "$commit" | say author
git log -1 --format=%B "$commit" | say message
git ls-tree -r -z "$commit" | grep --null-data '^160000 ' | say links
git config --null --blob "$commit:.gitmodules" --get-regexp '^submodule[.].*[.](path|url)$' 2> /dev/null \
    | say modules
git archive --format=tar --output={TREE} "$commit"
echo "$commit" | say commit
"""
_LONGEST_MESSAGE = 2000


def read(lines: Sequence[str]) -> Fetched | None:
    """None: it did not come to its end."""
    said: dict[str, str] = {}
    for line in lines:
        word, _, text = line.partition(" ")
        try:
            said[word] = base64.b64decode(text, validate=True).decode(errors="replace")
        except binascii.Error:
            return None
    if "commit" not in said:
        return None
    return Fetched(
        commit=said["commit"].strip(),
        author=_plain(said["author"])[:200],
        message=_plain(said["message"])[:_LONGEST_MESSAGE],
        submodules=_submodules(said["links"], said["modules"]),
    )


def _submodules(links: str, modules: str) -> tuple[Submodule, ...]:
    """`links` are the places in the tree, `modules` what `.gitmodules` says of places."""
    paths: dict[str, str] = {}
    urls: dict[str, str] = {}
    for setting in modules.split("\0")[:-1]:
        key, _, value = setting.partition("\n")
        name, _, kind = key.rpartition(".")
        (paths if kind == "path" else urls)[name] = value
    places = {path.rstrip("/"): urls[name] for name, path in paths.items() if name in urls}
    found = []
    for link in links.split("\0")[:-1]:
        fields, _, path = link.partition("\t")
        found.append(Submodule(path, fields.split(" ")[2], places.get(path, "")))
    return tuple(found)


def why(code: int, words: Sequence[str], *, login: bool) -> StepFailed | None:
    """What the customer can mend, in his words. `login`: the app has a credential for this host."""
    keys = [word for word in words if word.startswith(("ssh-", "ecdsa-"))]
    if code == UNKNOWN_HOST and keys:
        key = next((key for key in keys if key.startswith("ssh-ed25519")), keys[0])
        return StepFailed(
            "source",
            "the Git server's host key is not known, so it might be anybody; nothing was sent to it",
            exit_code=code,
            hint=f'It shows "{key}". Compare that with what the server\'s administrator says, then PUT '
            f'…/credentials/git {{"kind": "key", "host_keys": ["{key}"]}}.',
        )
    said = "\n".join(words)
    found = next((sign for sign in _SIGNS if sign in said), None)
    if found is None:
        return None
    message, hint = _PRIVATE if found in _ASKING and not login else _SIGNS[found]
    return StepFailed("source", message, exit_code=code, hint=hint)


_ASKING = ("could not read Username", "Authentication failed", "error: 403", "error: 401")
_PRIVATE = (
    "the repository is not there, or is private",
    'Check its URL; for a private one, PUT …/credentials/git {"kind": "token", "token": "…"}.',
)
_TOKEN = (
    "the Git server does not accept the app's token for this repository",
    "It may have ended, or lack the right to read this repository; PUT …/credentials/git sets another.",
)
_SIGNS: dict[str, tuple[str, str | None]] = {
    "Host key verification failed": (
        "the Git server's host key is not the one it is known by: the server has a new one, or somebody is "
        "in between; nothing was sent to it",
        "Ask the server's administrator, then set the new key with PUT …/credentials/git.",
    ),
    "Permission denied (": (
        "the Git server does not accept the app's deploy key",
        "Add the public key that GET …/credentials shows to the repository's deploy keys.",
    ),
    "ERROR: Repository not found": ("the Git server has no such repository, or not for this key", None),
    **dict.fromkeys(_ASKING, _TOKEN),
    "error: 301": (
        "the repository has moved: the server answers with another address, which is not followed",
        "Use the address the repository has now.",
    ),
}


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isprintable() or c in "\n\t").strip()
