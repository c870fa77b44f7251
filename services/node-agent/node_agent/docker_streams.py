"""Streams of bytes between the Docker Engine and us: outputs, terminals, processes inside an instance.

The SDK would hold a thread for each; this is asyncio on the engine's socket. Used by `docker_engine` alone.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from contracts.errors import NotFound, ProviderFailed, Unavailable

from node_agent.engine import Chunk

_READ = 64 * 1024
_LONGEST_ERROR = 64 * 1024
_PATIENCE = 30.0
_CLOSING_SECONDS = 2.0
_HEADER = 8
_STDERR = 2


class DockerSession:
    """`resizing` and `ending` are asked of the engine by other ways than this stream."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        terminal: bool,
        resizing: Callable[[int, int], Awaitable[None]] | None = None,
        ending: Callable[[], Awaitable[int | None]] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._terminal = terminal
        self._resizing = resizing
        self._ending = ending

    async def read(self) -> Chunk | None:
        try:
            if self._terminal:
                data = await self._reader.read(_READ)
                return Chunk("stdout", data) if data else None
            header = await self._reader.readexactly(_HEADER)
            data = await self._reader.readexactly(int.from_bytes(header[4:], "big"))
            return Chunk("stderr" if header[0] == _STDERR else "stdout", data)
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def write(self, data: bytes) -> None:
        # What has ended does not listen any more: its end is read, not written to.
        with contextlib.suppress(OSError):
            self._writer.write(data)
            await self._writer.drain()

    async def end_input(self) -> None:
        with contextlib.suppress(OSError):
            if self._writer.can_write_eof():
                self._writer.write_eof()

    async def resize(self, rows: int, columns: int) -> None:
        if self._resizing is not None:
            await self._resizing(rows, columns)

    async def exit_code(self) -> int | None:
        return None if self._ending is None else await self._ending()

    async def close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                await self._writer.wait_closed()
        except TimeoutError:
            # What it was told last it does not read.
            self._writer.transport.abort()
        except OSError:
            return


async def connect(
    url: str, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Behind the head of the answer. With a body the connection becomes a stream in both directions; without
    one everything that is read is the answer's."""
    payload = b"" if body is None else json.dumps(body).encode()
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await _dial(url)
            if body is None:
                # HTTP/1.0: the body comes as it is, and ends with the connection.
                writer.write(f"{method} {path} HTTP/1.0\r\nHost: engine\r\n\r\n".encode())
            else:
                writer.write(
                    f"{method} {path} HTTP/1.1\r\nHost: engine\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode()
                )
                writer.write(payload)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            status = int(head.split(maxsplit=2)[1])
            if status in (101, 200):
                return reader, writer
            text = await _message(head, reader)
            writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        raise Unavailable(f"the container engine does not answer: {error}") from error
    if status == 404:
        raise NotFound(text)
    raise ProviderFailed(f"the container engine refused: {text}")


async def _message(head: str, reader: asyncio.StreamReader) -> str:
    lengths = [
        line.partition(":")[2] for line in head.splitlines() if line.lower().startswith("content-length:")
    ]
    size = min(int(lengths[0]), _LONGEST_ERROR) if lengths else _LONGEST_ERROR
    text = (await reader.readexactly(size) if lengths else await reader.read(size)).decode(errors="replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()


async def _dial(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    if parts.scheme in ("unix", "http+unix"):
        return await asyncio.open_unix_connection(parts.path)
    if parts.scheme in ("tcp", "http") and parts.hostname is not None:
        return await asyncio.open_connection(parts.hostname, parts.port or 2375)
    raise OSError(f"no streams over {url}; give NODE_AGENT_ENGINE as unix:// or tcp://")
