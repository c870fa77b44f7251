"""A small HTTP client for tests that count every single request."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field


async def head(port: int, hostname: str, path: str = "/") -> str:
    """Status line and headers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {hostname}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.read()).decode().partition("\r\n\r\n")[0]
    finally:
        writer.close()


async def get(port: int, hostname: str, path: str = "/") -> tuple[int, str]:
    """Status 0 when there was no answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        return 0, str(error)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {hostname}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
        return (int(head.split()[1]) if head else 0), body
    except OSError as error:
        return 0, str(error)
    finally:
        writer.close()


@dataclass
class Load:
    """Requests as fast as they are answered, over connections that stay open, until it is told to end."""

    port: int
    hostname: str
    connections: int = 4
    answers: Counter[tuple[int, str]] = field(default_factory=Counter)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)
    _ended: bool = False

    @property
    def total(self) -> int:
        return self.answers.total()

    @property
    def failed(self) -> int:
        return sum(count for (status, _), count in self.answers.items() if status != 200)

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._ask()) for _ in range(self.connections)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._tasks)

    async def more(self, number: int) -> None:
        """Returns after so many more answers."""
        goal = self.total + number
        async with asyncio.timeout(30):
            while self.total < goal:
                self._answered.clear()
                await self._answered.wait()

    async def _ask(self) -> None:
        request = f"GET / HTTP/1.1\r\nHost: {self.hostname}\r\n\r\n".encode()
        while not self._ended:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                self.answers[0, ""] += 1
                continue
            try:
                while not self._ended:
                    writer.write(request)
                    head = (await reader.readuntil(b"\r\n\r\n")).decode()
                    length = next(
                        int(line.split(":")[1])
                        for line in head.splitlines()
                        if line.lower().startswith("content-length:")
                    )
                    body = (await reader.readexactly(length)).decode()
                    self.answers[int(head.split()[1]), body.strip()] += 1
                    self._answered.set()
            except (OSError, asyncio.IncompleteReadError):
                self.answers[0, ""] += 1
            finally:
                writer.close()
