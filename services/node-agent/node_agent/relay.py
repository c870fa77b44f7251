"""One HTTP request handed on from one connection to another, and its answer back.

A connection carries exactly one request: what lies behind its body is not handed on, and the answer always
says that the connection ends. The proxy keeps its connections to the waker for all workloads together, so
one that went on would bring the next workload's request to this one's instance.
"""

import asyncio
import contextlib
from dataclasses import dataclass
from types import NoneType

from runtime.tasks import end

LARGEST_HEAD = 64 * 1024
_PIECE = 64 * 1024
_LONGEST_LINE = 1024
_LOOK_EVERY = 0.25
# Of this connection, and not of the request.
_HOP = {b"connection", b"keep-alive", b"proxy-connection"}


class Malformed(Exception):
    """Not a request, or not an answer, whose end is beyond doubt."""


@dataclass(frozen=True, slots=True)
class Head:
    line: bytes
    fields: tuple[tuple[bytes, bytes], ...]

    def values(self, name: bytes) -> list[bytes]:
        return [value for found, value in self.fields if found.lower() == name]

    def with_connection(self, value: bytes) -> bytes:
        kept = [(name, content) for name, content in self.fields if name.lower() not in _HOP]
        lines = [self.line, *(name + b": " + content for name, content in kept), b"Connection: " + value]
        return b"\r\n".join(lines) + b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    head: Head
    host: str
    # Of its body; None: it comes in chunks.
    length: int | None
    upgrade: bool

    def to_send(self) -> bytes:
        return self.head.with_connection(b"Upgrade" if self.upgrade else b"close")


def parse_head(data: bytes) -> Head:
    line, *rest = data.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if b"\n" in line or b"\r" in line:
        raise Malformed("its first line is not one")
    fields = []
    for text in rest:
        name, colon, value = text.partition(b":")
        if not colon or not name or name != name.strip() or b" " in name or b"\n" in text or b"\r" in text:
            raise Malformed("a header is not one")
        fields.append((name, value.strip()))
    return Head(line, tuple(fields))


def parse_request(data: bytes) -> Request:
    head = parse_head(data)
    words = head.line.split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise Malformed("no request line of HTTP/1")
    hosts, lengths, codings = (head.values(n) for n in (b"host", b"content-length", b"transfer-encoding"))
    if len(hosts) != 1:
        raise Malformed("it needs one Host")
    if len(lengths) > 1 or (codings and (lengths or [c.lower() for c in codings] != [b"chunked"])):
        raise Malformed("the length of its body is in doubt")
    if lengths and not lengths[0].isdigit():
        raise Malformed("its Content-Length is no number")
    host, port = hosts[0].decode("latin-1").lower(), ""
    if ":" in host:
        host, _, port = host.rpartition(":")
    if port and not port.isdigit():
        raise Malformed("its Host has no proper port")
    return Request(
        head=head,
        host=host.removesuffix("."),
        length=None if codings else int(lengths[0]) if lengths else 0,
        upgrade=bool(head.values(b"upgrade"))
        and any(b"upgrade" in value.lower() for value in head.values(b"connection")),
    )


async def relay(
    request: Request,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    instance_reader: asyncio.StreamReader,
    instance_writer: asyncio.StreamWriter,
) -> None:
    """Until the answer is over, or whoever asked has gone. `Malformed`: nothing was answered yet."""
    instance_writer.write(request.to_send())
    going = asyncio.create_task(_body(request, reader, instance_writer))
    answering = asyncio.create_task(_answer(request, instance_reader, writer))
    gone = asyncio.create_task(_gone(request, going, reader))
    pumps: set[asyncio.Task[None]] = set()
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ConnectionAbortedError("whoever asked has gone")
        changed = answering.result()
        pumps.add(asyncio.create_task(_pump(instance_reader, writer)))
        if changed:
            await going
            pumps.add(asyncio.create_task(_pump(reader, instance_writer)))
        await asyncio.wait({*pumps, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end((going, answering, gone, *pumps))


def left(reader: asyncio.StreamReader) -> bool:
    """Whether whoever writes there has gone, as far as can be told without reading."""
    return reader.at_eof() or reader.exception() is not None


async def _answer(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Hands on the head of the answer; whether the connection is another protocol's from here on."""
    while True:
        try:
            data = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            raise Malformed("the app did not answer in HTTP") from error
        head = parse_head(data)
        words = head.line.split(b" ", 2)
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise Malformed("the app did not answer in HTTP")
        status = int(words[1])
        if status == 101:
            if not request.upgrade:
                raise Malformed("the app changed the protocol unasked")
            writer.write(data)
            await writer.drain()
            return True
        if status < 200:
            writer.write(data)
            continue
        writer.write(head.with_connection(b"close"))
        await writer.drain()
        return False


async def _body(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if request.length is not None:
        await _exactly(request.length, reader, writer)
        return
    while True:
        line = await _line(reader)
        try:
            size = int(line.split(b";")[0].strip(), 16)
        except ValueError as error:
            raise Malformed("a chunk has no size") from error
        writer.write(line)
        if size == 0:
            break
        await _exactly(size + 2, reader, writer)
    while (line := await _line(reader)) != b"\r\n":
        writer.write(line)
    writer.write(line)
    await writer.drain()


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readuntil(b"\r\n")
    if len(line) > _LONGEST_LINE:
        raise Malformed("a line between chunks is too long")
    return line


async def _exactly(size: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while size:
        piece = await reader.read(min(size, _PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(piece)
        writer.write(piece)
        await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(_PIECE):
            writer.write(piece)
            await writer.drain()


async def _gone(request: Request, going: asyncio.Task[None], reader: asyncio.StreamReader) -> None:
    """Returns when nobody waits for the answer any more."""
    while not going.done():
        if left(reader):
            return
        await asyncio.wait({going}, timeout=_LOOK_EVERY)
    # One that is not read to its end may be answered all the same.
    if not isinstance(going.exception(), ConnectionError | NoneType):
        return
    if request.upgrade:
        # What comes now is the app's.
        while True:
            if left(reader):
                return
            await asyncio.sleep(_LOOK_EVERY)
    with contextlib.suppress(ConnectionError):
        # Nobody's: it was promised that the connection ends.
        while await reader.read(_PIECE):
            pass
