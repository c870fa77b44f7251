"""Whether an offered version is within what package.json, .nvmrc or a lock file asks for. PURE."""

import re

_TERM = re.compile(r"^(>=|<=|>|<|\^|~|=)?\s*v?(\d+|[x*])(?:\.(\d+|[x*]))?(?:\.(\d+|[x*]))?")
_SPACED = re.compile(r"(>=|<=|>|<|\^|~|=)\s+")
_CODENAMES = {"argon": 4, "gallium": 16, "hydrogen": 18, "iron": 20, "jod": 22, "krypton": 24}


def fits(asked: str, version: str) -> bool:
    """An offer of `24` stands for every 24.x: only what could not be met by any of them is refused."""
    asked = asked.strip().lower()
    if asked in ("", "*", "x", "latest", "node", "current", "lts/*"):
        return True
    if asked.startswith("lts/"):
        return _CODENAMES.get(asked.removeprefix("lts/")) == int(version.partition(".")[0])
    return any(_all(part, version) for part in asked.split("||"))


def _all(part: str, version: str) -> bool:
    low, dash, high = part.partition(" - ")
    words = [f">={low.strip()}", f"<={high.strip()}"] if dash else _SPACED.sub(r"\1", part).split()
    return bool(words) and all(_one(word, version) for word in words)


def _one(word: str, version: str) -> bool:
    found = _TERM.match(word)
    if found is None:
        return False
    operator, *numbers = found.groups()
    wanted = tuple(int(number) for number in numbers if number is not None and number.isdecimal())
    offered = tuple(int(number) for number in version.split(".") if number.isdecimal())
    if not wanted:
        return True
    # Compared as far as both are said.
    size = min(len(wanted), len(offered))
    left, right = offered[:size], wanted[:size]
    match operator:
        case ">=":
            return left >= right
        case ">":
            return left > right or (left == right and len(wanted) > len(offered))
        case "<=":
            return left <= right
        case "<":
            return left < right or (left == right and any(wanted[size:]))
        case "^":
            return offered[0] == wanted[0]
        case _:
            return left == right
