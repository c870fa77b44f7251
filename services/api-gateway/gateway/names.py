"""Looks up the names of hosts that strangers choose, and whose servers may never answer.

Invariant: however many are asked for, nothing else of the process waits for them: they have threads of their
own, and an organization has few of these at a time, until the resolver itself has given up.
"""

import asyncio
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

    async def addresses(self, organization: str, host: str, port: int) -> list[str]:
        self._under_way = [(who, found) for who, found in self._under_way if not found.done()]
        if sum(who == organization for who, _ in self._under_way) >= _OF_ORGANIZATION:
            raise QuotaExceeded(
                "names are being looked up for the organization already; try again in a moment"
            )
        found = self._threads.submit(self._resolve, host, port)
        self._under_way.append((organization, found))
        try:
            async with asyncio.timeout(self._patience):
                return await asyncio.wrap_future(found)
        except TimeoutError as error:
            raise Unavailable(
                f"nobody says within {self._patience:g} s where {host} is; try again"
            ) from error

    def end(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
