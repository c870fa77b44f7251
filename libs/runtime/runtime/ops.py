"""/healthz, /readyz and /metrics of a process: what a supervisor and Prometheus ask.

Written on bare asyncio because the agent must stay small and these three answers need no framework. It is
on a port of its own, so nothing about the platform can be read through the customers' door.
"""

import asyncio
from collections.abc import Callable

import structlog
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

log = structlog.get_logger("runtime.ops")

_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class Ops:
    def __init__(self, readiness: Callable[[], dict[str, bool]], registry: CollectorRegistry) -> None:
        self._readiness = readiness
        self._registry = registry
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        self._server = await asyncio.start_server(self._serve, host, port, limit=8192)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                head = await reader.readuntil(b"\r\n\r\n")
            words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            status, body = self._answer(words[1].split("?")[0] if len(words) == 3 else "")
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {_TEXT}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            await writer.drain()
        except (
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ConnectionError,
        ) as error:
            log.debug("bad request", error=str(error))
        finally:
            writer.close()

    def _answer(self, path: str) -> tuple[str, bytes]:
        if path == "/healthz":
            return "200 OK", b"ok\n"
        if path == "/readyz":
            state = self._readiness()
            lines = "".join(f"{name}: {'ready' if ready else 'not ready'}\n" for name, ready in state.items())
            return ("200 OK" if all(state.values()) else "503 Service Unavailable"), lines.encode()
        if path == "/metrics":
            return "200 OK", generate_latest(self._registry)
        return "404 Not Found", b"not found\n"
