"""Passwords: hashed with argon2id, compared in the same time whether the user exists or not."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

# OWASP's second choice of parameters: 19 MiB and two passes, some 30 ms of one core.
_HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
_AT_ONCE = 2


class Passwords:
    def __init__(self) -> None:
        # A flood of log-ins must take neither all cores nor all memory.
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._nobodys = _HASHER.hash("nobody's password")

    async def hash(self, password: str) -> str:
        async with self._turn:
            return await asyncio.to_thread(_HASHER.hash, password)

    async def matches(self, password_hash: str | None, password: str) -> bool:
        async with self._turn:
            known = password_hash is not None
            return await asyncio.to_thread(_matches, password_hash or self._nobodys, password) and known


def _matches(password_hash: str, password: str) -> bool:
    try:
        return _HASHER.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
