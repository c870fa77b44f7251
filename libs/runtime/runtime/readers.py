"""Connections for single reads: each statement a transaction of its own, past SQLAlchemy.

A pool of its own, because psycopg's keeps everybody waiting while the server is away, says so in a line an
attempt and comes back seconds after it. Here who asks is refused at once, and who asks next tries again.
What was used last is taken first, so that the rest grows idle and can be let go. `Store` alone calls it.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeAlias

from psycopg import AsyncConnection, OperationalError
from psycopg.pq import TransactionStatus

WAIT_SECONDS = 10.0
IDLE_SECONDS = 60.0

_Connection: TypeAlias = AsyncConnection[tuple[Any, ...]]


class Readers:
    def __init__(self, conninfo: str, most: int) -> None:
        self._conninfo = conninfo
        self._turn = asyncio.Semaphore(most)
        # With the moment each was last used; the oldest first.
        self._idle: list[tuple[float, _Connection]] = []

    async def read(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Raises what psycopg raises, and TimeoutError when all connections stay busy."""
        if self._turn.locked():
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turn.acquire()
        else:
            await self._turn.acquire()
        try:
            if self._idle:
                _, connection = self._idle.pop()
                try:
                    return await self._fetch(connection, sql, parameters)
                except OperationalError:
                    if not connection.broken:
                        raise
                # It died with the server it was made to, and the others with it.
                await self.close()
            return await self._fetch(await self._connect(), sql, parameters)
        finally:
            self._turn.release()

    async def _connect(self) -> _Connection:
        return await AsyncConnection.connect(self._conninfo, autocommit=True)

    async def _fetch(
        self, connection: _Connection, sql: str, parameters: Sequence[Any]
    ) -> list[tuple[Any, ...]]:
        try:
            cursor = await connection.execute(sql, parameters, prepare=True)
            return await cursor.fetchall()
        finally:
            if connection.pgconn.transaction_status == TransactionStatus.IDLE:
                self._idle.append((_now(), connection))
            else:
                # Broken, or given up in the middle of an answer.
                await connection.close()

    async def let_go(self) -> None:
        """Closes what nobody has used for a while."""
        while self._idle and self._idle[0][0] < _now() - IDLE_SECONDS:
            await self._idle.pop(0)[1].close()

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop()[1].close()


def _now() -> float:
    return asyncio.get_running_loop().time()
