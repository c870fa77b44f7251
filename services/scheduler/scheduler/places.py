"""Keeps the `places` bucket at what the tables say: which nodes have been told to run a workload.

Every ingress sends requests to those nodes and to no other, whatever another says of itself. So a copy
that was given up answers nobody who comes by another node, not even when its node is back before it has
heard of it; and no node gets a workload's requests by asking for them. Called by `projection`, before a
node is told.
"""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

from contracts.errors import Conflict, Unavailable
from contracts.mesh import Placed
from pydantic import ValidationError
from runtime.runtime import Runtime
from runtime.store import PLATFORM

TRIES = 5

# A slot that has another place by now serves on until it is told to leave.
_PLACED = """
select w.id, w.organization, w.revision, array(
    select distinct p.node from placement p where p.workload = w.id and p.leaving is null order by p.node
) from workload w where w.id = any(%s)
"""

_WRITTEN = "select workload, max(written) from projection where written > 0 group by workload"


class Places:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._bucket = runtime.bus.bucket("places")

    async def tell(self, workloads: Collection[str]) -> dict[str, BaseException]:
        """Of those that could not be written, why not."""
        rows = await self._read(_PLACED, (list(workloads),))
        outcomes = await asyncio.gather(*(self._write(row) for row in rows), return_exceptions=True)
        return {
            row[0]: outcome
            for row, outcome in zip(rows, outcomes, strict=True)
            if isinstance(outcome, BaseException)
        }

    async def _write(self, row: Sequence[Any]) -> None:
        workload, organization, revision, nodes = row
        placed = Placed(workload=workload, organization=organization, revision=revision, nodes=tuple(nodes))
        for _ in range(TRIES):
            entry = await self._bucket.get(workload)
            found = None if entry is None else placed_in(entry.value)
            try:
                if entry is None:
                    await self._bucket.create(workload, placed.model_dump_json().encode())
                elif found is None or (found.revision <= revision and found != placed):
                    await self._bucket.update(
                        workload, placed.model_dump_json().encode(), last=entry.revision
                    )
                return
            except Conflict:
                continue
        raise Unavailable(f"others keep writing where {workload} is placed")

    async def lost(self) -> set[str]:
        """The workloads whose nodes have been told, and of which the bucket says less than that."""
        there = {key: placed_in(entry.value) for key, entry in (await self._bucket.entries()).items()}
        rows = await self._read(_WRITTEN)
        found = {key: -1 if placed is None else placed.revision for key, placed in there.items()}
        return {workload for workload, written in rows if found.get(workload, -1) < written}

    async def _read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            return await (await connection.execute(statement, parameters, prepare=True)).fetchall()

    async def forget(self, workload: str) -> None:
        """It is deleted, and nothing of it runs."""
        if await self._bucket.get(workload) is not None:
            await self._bucket.delete(workload)


def placed_in(value: bytes) -> Placed | None:
    try:
        return Placed.model_validate_json(value)
    except ValidationError:
        return None
