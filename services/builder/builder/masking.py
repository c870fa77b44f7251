"""What a build's log must not show, taken out before a line is written: secrets, and their like. PURE.

Known values are hidden in every form a program prints them in by itself (quoted, escaped, base 64, line by
line); unknown ones where their place gives them away: in an address, or in a private key. Words so short or
so common that hiding them would only blacken the log are left. Used by the log's writer, for one build.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote, quote_plus

MASK = "********"
_SHORTEST = 5
_LONGEST_KEY = 200
_COMMON = re.compile(
    r"false|undefined|debug|error|warning|default|(?:en|dis)abled|always|never|production|development|staging"
    r"|testing|preview|localhost|[\d.]{5,9}|utf-8|python3?|postgres(?:ql)?|mysql|mariadb|redis|sqlite|memory",
    re.IGNORECASE,
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_USER = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)[^\s/@'\"<>]+@")
_PARAMETER = re.compile(
    r"([?&;][\w.-]*(?:token|secret|passw(?:or)?d|api_?key|access_?key|signature|credential|auth)[\w.-]*=)"
    r"[^\s&;'\"<>#]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(\bauthorization:\s*(?:bearer|basic|token)\s+)[^\s'\"]+", re.IGNORECASE)
_KEY_BEGINS = re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")
_KEY_ENDS = re.compile(r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----")


class Mask:
    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        # The longest first: one may be a part of another.
        self._forms = tuple(sorted(forms, key=len, reverse=True))
        # Stream -> lines of a private key seen so far.
        self._key: dict[str, int] = {}

    def also(self, secret: str) -> "Mask":
        more = Mask((secret,))
        more._forms = tuple(sorted({*self._forms, *more._forms}, key=len, reverse=True))
        more._key = self._key
        return more

    def lines(self, stream: str, text: str) -> str:
        """Whole lines of one stream, in their order."""
        if "\x1b" in text:
            text = "\n".join(self._coloured(line) for line in text.split("\n"))
        text = self._words(text)
        if stream in self._key or "-----BEGIN " in text:
            text = "\n".join(self._without_keys(stream, text))
        return text

    def words(self, text: str) -> str:
        """A text for itself, such as a failure's message."""
        alone = Mask()
        alone._forms = self._forms
        return alone.lines("", text)

    def _coloured(self, line: str) -> str:
        """A secret with colours in between is one as soon as they are taken out."""
        plain = _ANSI.sub("", line)
        return line if self._words(plain) == plain else plain

    def _words(self, text: str) -> str:
        for form in self._forms:
            if form in text:
                text = text.replace(form, MASK)
        if "://" in text:
            text = _PARAMETER.sub(rf"\1{MASK}", _USER.sub(rf"\1{MASK}@", text))
        if "uthorization:" in text:
            text = _HEADER.sub(rf"\1{MASK}", text)
        return text

    def _without_keys(self, stream: str, text: str) -> Iterator[str]:
        for line in text.split("\n"):
            seen = self._key.get(stream)
            if seen is None:
                begins = _KEY_BEGINS.search(line)
                if begins is None:
                    yield line
                    continue
                seen = 0
            if _KEY_ENDS.search(line) or seen >= _LONGEST_KEY:
                self._key.pop(stream, None)
            else:
                self._key[stream] = seen + 1
            yield MASK


def _forms(secret: str) -> Iterator[str]:
    whole = secret.strip()
    pieces = [piece.strip() for piece in whole.splitlines()]
    for piece in pieces:
        if _worth_hiding(piece):
            yield piece
    if _worth_hiding(whole):
        yield whole
        yield json.dumps(whole)[1:-1]
        yield json.dumps(whole, ensure_ascii=False)[1:-1]
        yield quote(whole, safe="")
        yield quote_plus(whole)
        for text in (secret, whole):
            encoded = base64.b64encode(text.encode()).decode()
            yield encoded.rstrip("=")
            yield encoded.rstrip("=").translate(str.maketrans("+/", "-_"))


def _worth_hiding(word: str) -> bool:
    return len(word) >= _SHORTEST and not _COMMON.fullmatch(word)
