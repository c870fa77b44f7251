"""Keeps the bucket `copies` at what the tables say is to be copied and dropped: a key for each end.

A key that is there is an order, and one that is gone is none; so whatever became of the bucket, the next look
makes it right. Called by `copies`.
"""

from contracts.copies import CopyOrder
from contracts.errors import Conflict
from runtime.runtime import Runtime

_TRANSFERS = "select workload, id, secret, source, target, mode from transfer"
_DROPPED = """
select c.workload, c.node, c.id from copy c where c.dropping
    and not exists (select from transfer t where t.workload = c.workload and c.node in (t.source, t.target))
"""


class Orders:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._bucket = runtime.bus.bucket("copies")

    async def write(self) -> None:
        # The bucket first: who else writes it by what the tables said before is found by the next look.
        there = await self._bucket.entries()
        wanted = await self._wanted()
        for key, content in wanted.items():
            entry = there.pop(key, None)
            try:
                if entry is None:
                    await self._bucket.create(key, content)
                elif entry.value != content:
                    await self._bucket.update(key, content, last=entry.revision)
            except Conflict:
                continue
        for key, entry in there.items():
            try:
                await self._bucket.delete(key, last=entry.revision)
            except Conflict:
                continue

    async def _wanted(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        for workload, id, secret, source, target, mode in await self._runtime.store.read(_TRANSFERS):
            for role, node, peer in (("give", source, target), ("take", target, source)):
                order = CopyOrder.model_validate(
                    {
                        "id": id,
                        "workload": workload,
                        "role": role,
                        "peer": peer,
                        "secret": secret,
                        "mode": mode,
                    }
                )
                found[f"{node}.{workload}"] = order.model_dump_json().encode()
        for workload, node, id in await self._runtime.store.read(_DROPPED):
            order = CopyOrder(id=id, workload=workload, role="drop")
            found[f"{node}.{workload}"] = order.model_dump_json().encode()
        return found
