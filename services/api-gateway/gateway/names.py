"""Looks up the names of hosts that strangers choose, and whose servers may never answer.

Invariant: however many are asked for, nothing else of the process waits for them: they have threads of their
own, and an organization has few of these at a time, until the resolver itself has given up.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeAlias

from contracts.errors import QuotaExceeded, Unavailable

# host, port -> every address the name has
Resolve: TypeAlias = Callable[[str, int], list[str]]

_AT_ONCE = 4
_OF_ORGANIZATION = 2


def resolve(host: str, port: int) -> list[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Names:
    def __init__(self, resolve: Resolve, patience: float = 5.0) -> None:
        self._resolve = resolve
        self._patience = patience
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="names")
        self._under_way: list[tuple[str, Future[list[str]]]] = []
        # One of them.
        self._ended = asyncio.Event()

    async def addresses(self, organization: str, host: str, port: int) -> list[str]:
        found: Future[list[str]] | None = None
        try:
            async with asyncio.timeout(self._patience):
                while self._of(organization) >= _OF_ORGANIZATION:
                    await self._ended.wait()
                found = self._begin(organization, host, port)
                return await asyncio.wrap_future(found)
        except TimeoutError as error:
            if found is None:
                raise QuotaExceeded(
                    "names are being looked up for the organization already; try again in a moment"
                ) from error
            raise Unavailable(
                f"nobody says within {self._patience:g} s where {host} is; try again"
            ) from error

    def _of(self, organization: str) -> int:
        self._under_way = [(who, found) for who, found in self._under_way if not found.done()]
        return sum(who == organization for who, _ in self._under_way)

    def _begin(self, organization: str, host: str, port: int) -> Future[list[str]]:
        loop = asyncio.get_running_loop()

        def tell(_: Future[list[str]]) -> None:
            # The process may have ended before the resolver has.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._tell)

        found = self._threads.submit(self._resolve, host, port)
        self._under_way.append((organization, found))
        found.add_done_callback(tell)
        return found

    def _tell(self) -> None:
        self._ended.set()
        self._ended = asyncio.Event()

    def end(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
