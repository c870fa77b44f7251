"""HTTP to the container engine, asynchronous, one connection a request.

Not the engine's SDK: that holds a thread for every build, cannot be interrupted while a step is silent, and
sends the operator's own registry log-ins along with every customer's build. Closing the connection here is
how a build is stopped: the engine then ends its step by itself.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import urlencode, urlsplit

import h11
from contracts.errors import ProviderFailed, Unavailable

_CHUNK = 64 * 1024
_FILE_CHUNK = 1024 * 1024
_CONNECT_SECONDS = 5


class Refused(ProviderFailed):
    """The engine understood, and said no."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(f"the container engine refused: {words}")
        self.status = status
        self.words = words


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent: JSON, or a stream of known length."""

    chunks: AsyncIterable[bytes]
    length: int
    kind: str


class EngineApi:
    def __init__(self, url: str) -> None:
        """`unix:///path` or `tcp://host:port`."""
        self._url = urlsplit(url)
        if self._url.scheme not in ("unix", "tcp"):
            raise ValueError(f"the engine's address must begin with unix:// or tcp://, not {url!r}")

    async def call(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        *,
        body: Any = None,
        timeout: float = 60,
    ) -> Any:
        """The JSON of the answer; None when there is none."""
        sent = None if body is None else _json(body)
        try:
            async with asyncio.timeout(timeout), self.stream(method, path, query, sent) as chunks:
                answer = b"".join([chunk async for chunk in chunks])
        except TimeoutError as error:
            raise Unavailable(f"the container engine did not answer within {timeout:g} s") from error
        return json.loads(answer) if answer.strip() else None

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Body | None = None,
        *,
        headers: Sequence[tuple[str, str]] = (),
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The body of the answer as it comes. Leaving the block ends the request, finished or not."""
        target = path + (f"?{urlencode(_plain(query))}" if query else "")
        sent = [("Host", self._url.netloc or "engine"), ("Connection", "close"), *headers]
        if body is not None:
            sent += [("Content-Type", body.kind), ("Content-Length", str(body.length))]
        http = h11.Connection(h11.CLIENT)
        reader, writer = await self._connect()
        request = h11.Request(method=method, target=target, headers=sent)
        sending = asyncio.create_task(_send(http, writer, request, body), name=f"{method} {path}")
        try:
            response = await _response(http, reader)
            chunks = _data(http, reader)
            if response.status_code >= 400:
                raise Refused(response.status_code, _words([chunk async for chunk in chunks]))
            yield chunks
        finally:
            writer.close()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                if self._url.scheme == "unix":
                    return await asyncio.open_unix_connection(self._url.path)
                return await asyncio.open_connection(self._url.hostname, self._url.port or 2375)
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"the container engine does not answer at {self._url.geturl()}") from error


async def _send(
    http: h11.Connection, writer: asyncio.StreamWriter, request: h11.Request, body: Body | None
) -> None:
    try:
        writer.write(http.send(request) or b"")
        if body is not None:
            async for chunk in body.chunks:
                writer.write(http.send(h11.Data(data=chunk)) or b"")
                await writer.drain()
        writer.write(http.send(h11.EndOfMessage()) or b"")
        await writer.drain()
    except ConnectionError:
        # The engine may have answered before it had read everything: who reads the answer will see.
        return
    except Exception:
        # Nothing more will come from us; without this both sides would wait.
        writer.close()
        raise


async def _response(http: h11.Connection, reader: asyncio.StreamReader) -> h11.Response:
    while True:
        event = await _event(http, reader)
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            raise Unavailable("the container engine closed the connection without an answer")


async def _data(http: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        event = await _event(http, reader)
        if isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            return


async def _event(http: h11.Connection, reader: asyncio.StreamReader) -> Any:
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(await reader.read(_CHUNK))
    except (ConnectionError, h11.ProtocolError) as error:
        raise Unavailable(f"the container engine broke off: {error}") from error
    return event


def tar_of(file: BinaryIO) -> Body:
    """A tar file, from its beginning."""
    length = file.seek(0, os.SEEK_END)

    async def chunks() -> AsyncIterator[bytes]:
        file.seek(0)
        while chunk := await asyncio.to_thread(file.read, _FILE_CHUNK):
            yield chunk

    return Body(chunks(), length, "application/x-tar")


def _json(value: Any) -> Body:
    data = json.dumps(value).encode()

    async def once() -> AsyncIterator[bytes]:
        yield data

    return Body(once(), len(data), "application/json")


def _plain(query: dict[str, Any]) -> dict[str, str]:
    """The engine reads a flag as 1, and anything with a structure as JSON."""
    plain = {}
    for name, value in query.items():
        if isinstance(value, dict | list):
            plain[name] = json.dumps(value)
        elif value is not None and value is not False:
            plain[name] = "1" if value is True else str(value)
    return plain


def _words(chunks: list[bytes]) -> str:
    text = b"".join(chunks).decode(errors="replace").strip()
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:500] or "no reason given"
