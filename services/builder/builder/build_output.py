"""What the engine says while it builds, JSON made into lines, a step and an end. PURE.

Lines of one stream that arrive together stay together, as one text: a build may say fifty thousand of them.
"""

import json
import re
from collections.abc import Iterator, Mapping

from builder.image_builder import Stream

# The engine's classic builder paints what a step writes to stderr.
_RED, _PLAIN = "\x1b[91m", "\x1b[0m"
_STEP = re.compile(r"^Step (\d+)/(\d+) : (.*)$")
_CONTAINER = re.compile(r"^ ---> Running in ([0-9a-f]{12})$")
_LAYER = re.compile(r"^ ---> ([0-9a-f]{12})$")
_CHATTER = re.compile(r"^( ---> |Removing intermediate container |Successfully (built|tagged) )")
# More than any Dockerfile makes, and not more than a step may invent.
_MOST_LAYERS = 1000
# How every line of the engine's own begins.
_ENGINES = ("Step ", " ---> ", "Removing ", "Successfully ")
_LONGEST_LINE = 64 * 1024

# Whole lines, without the last one's end.
Lines = tuple[Stream, str]


class BuildOutput:
    def __init__(
        self, mark: str | None = None, marks: int = 0, images: Mapping[str, str] | None = None
    ) -> None:
        """`mark`: an instruction of the platform's own that stands in the Dockerfile so many times, and of
        which nothing is said. `images`: names of the platform's own, and what the customer calls them."""
        self._images = images or {}
        self._mark, self._marks = mark, marks
        self._passed = 0
        self._unsaid = False
        self.image: str | None = None
        # Of an image that was pushed.
        self.digest: str | None = None
        self.instruction: str | None = None
        self.error: str | None = None
        self.exit_code: int | None = None
        # As the engine shows them; a step could have printed one, so this is no more than a hint.
        self.layers: set[str] = set()
        # Those of them that no cache had.
        self.made: set[str] = set()
        self._from_cache = self._running = False
        self.container: str | None = None
        self._bytes = b""
        self._parts: dict[Stream, str] = {"stdout": "", "stderr": ""}

    def feed(self, chunk: bytes) -> Iterator[Lines]:
        """In the order in which they were said."""
        *messages, self._bytes = (self._bytes + chunk).split(b"\r\n")
        together: list[str] = []
        of: Stream = "stdout"
        for message in messages:
            if not message.strip():
                continue
            for stream, text in self._message(json.loads(message)):
                if together and stream != of:
                    yield of, "\n".join(together)
                    together = []
                of = stream
                together.append(text)
        if together:
            yield of, "\n".join(together)

    def end(self) -> Iterator[Lines]:
        for stream, text in self._parts.items():
            if text:
                yield from self._lines(stream, [text])
        self._parts = {"stdout": "", "stderr": ""}

    def _message(self, message: dict[str, object]) -> Iterator[Lines]:
        if "stream" in message:
            yield from self._text(str(message["stream"]))
        elif "error" in message or "errorDetail" in message:
            detail = message.get("errorDetail")
            detail = detail if isinstance(detail, dict) else {}
            self.error = str(detail.get("message") or message.get("error"))
            self.exit_code = detail.get("code") or None
        elif isinstance(aux := message.get("aux"), dict):
            self.image = aux.get("ID", self.image)
            self.digest = aux.get("Digest", self.digest)
        elif "status" in message and "progressDetail" not in message:
            yield "platform", str(message["status"])

    def _text(self, text: str) -> Iterator[Lines]:
        stream: Stream = "stdout"
        if text.startswith(_RED):
            stream, text = "stderr", text.removeprefix(_RED).removesuffix(_PLAIN)
        *lines, rest = (self._parts[stream] + text).split("\n")
        if len(rest) > _LONGEST_LINE:
            # The end of so long a line is shown nowhere; of one that overwrites itself, only the end is.
            rest = (rest.rpartition("\r")[2] if "\r" in rest else rest)[:_LONGEST_LINE]
        self._parts[stream] = rest
        yield from self._lines(stream, lines)

    def _lines(self, stream: Stream, lines: list[str]) -> Iterator[Lines]:
        plain: list[str] = []
        for line in lines:
            if line and not line.startswith(_ENGINES):
                plain.append(line)
                continue
            if plain:
                yield stream, "\n".join(plain)
                plain = []
            yield from self._engines(stream, line)
        if plain:
            yield stream, "\n".join(plain)

    def _engines(self, stream: Stream, text: str) -> Iterator[Lines]:
        """Lines that may be the engine's own, or a blank one."""
        step = _STEP.match(text) if stream == "stdout" else None
        layer = _LAYER.match(text)
        container = _CONTAINER.match(text) if stream == "stdout" else None
        if container is not None:
            self.container = container[1]
            # What a step itself says from here on about a cache is no news of the engine's.
            self._running = True
        if step is not None:
            self.instruction = step[3]
            for own, base in self._images.items():
                self.instruction = self.instruction.replace(own, base)
            self._unsaid = step[3] == self._mark
            # A stage begins with an image that is there.
            self._from_cache = step[3].upper().startswith("FROM ")
            self._running = False
            self._passed += self._unsaid
            if not self._unsaid:
                place, count = int(step[1]) - self._passed, int(step[2]) - self._marks
                yield "platform", f"Step {place}/{count} : {self.instruction}"
        elif layer is not None and stream == "stdout":
            if len(self.layers) < _MOST_LAYERS:
                self.layers.add(layer[1])
                if not self._from_cache:
                    self.made.add(layer[1])
        elif text == " ---> Using cache":
            self._from_cache = not self._running
            if not self._unsaid:
                yield "platform", "Using cache"
        elif self._worth_a_line(stream, text):
            yield stream, text

    def _worth_a_line(self, stream: Stream, text: str) -> bool:
        """A blank line is a step's own; those around the engine's words say nothing."""
        if text:
            return not _CHATTER.match(text)
        return stream == "stderr" or (self.instruction or "").upper().startswith("RUN")
