"""The HTTP server before a service: how it listens, and when it takes somebody for gone."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn

from runtime.service import AsgiApp

_GONE_MS = 120_000


class HttpServer(uvicorn.Server):
    def __init__(self, app: AsgiApp, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=5,
                h11_max_incomplete_event_size=64 * 1024,
                # Who is not read for a while, because what he talks to is busy, cannot answer a ping.
                ws_ping_interval=None,
                ws_ping_timeout=None,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the process, not to one of its servers

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Every connection has it from there: where nothing of what is sent arrives, nobody is there any more.
        for server in self.servers:
            for listening in server.sockets:
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _GONE_MS)

    async def begin(self) -> asyncio.Task[None]:
        """Serves when this returns, until `should_exit` is set and the task has ended."""
        serving = asyncio.create_task(self.serve(), name="http")
        while not self.started:
            if serving.done():
                serving.result()
                raise RuntimeError("the API's server ended before it began")
            await asyncio.sleep(0.01)
        return serving

    @property
    def bound(self) -> int:
        """The port it listens at."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port
