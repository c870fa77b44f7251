"""What this node should run, workload by workload, as the scheduler said it last: kept on disk (I6).

A lower revision never replaces a higher one, and only a specification that says so takes a workload away: a
key that is missing, a bucket that is empty or a value that cannot be read is no order at all.
"""

from pathlib import Path

import structlog
from contracts.model import Model
from contracts.workload import NodeWorkload
from pydantic import ValidationError

from node_agent.shelf import Shelf

log = structlog.get_logger("node-agent.desired")


class Failure(Model):
    """A generation that did not come to life here; it is tried again when there is a new one."""

    generation: int
    fingerprint: str
    reason: str
    log_tail: tuple[str, ...] = ()


class Record(Model):
    desired: NodeWorkload
    # What came to life last: it stays when `desired` does not.
    live: NodeWorkload | None = None
    failure: Failure | None = None
    # The highest revision whose outcome has been told.
    reported: int = 0

    @property
    def failed(self) -> bool:
        spec = self.desired.spec
        return (
            self.failure is not None
            and bool(self.desired.slots)
            and (self.failure.generation, self.failure.fingerprint) == (spec.generation, spec.fingerprint())
        )

    @property
    def wanted(self) -> NodeWorkload | None:
        return self.live if self.failed else self.desired

    @property
    def rolling_out(self) -> bool:
        """What is wanted has yet to come to life, as a whole or not at all."""
        return not self.failed and (self.live is None or self.live.revision < self.desired.revision)

    @property
    def gone(self) -> bool:
        """Its end has been told: only its name is left."""
        return self.desired.spec.state == "deleted" and self.reported >= self.desired.revision


class Desired:
    def __init__(self, folder: Path, node: str) -> None:
        self._shelf = Shelf(folder / "workloads", Record)
        self._node = node

    def open(self) -> None:
        self._shelf.open()

    def __getitem__(self, workload: str) -> Record:
        record = self._shelf.get(workload)
        if record is None:
            raise KeyError(workload)
        return record

    def __contains__(self, workload: str) -> bool:
        return self._shelf.get(workload) is not None

    def workloads(self) -> list[str]:
        return [workload for workload, _ in self._shelf]

    async def accept(self, key: str, value: bytes | None) -> str | None:
        """A value of the bucket; the workload that has something to do because of it."""
        if value is None:
            await self._forget(key.partition(".")[2])
            return None
        try:
            told = NodeWorkload.model_validate_json(value)
        except ValidationError as error:
            log.error("a desired state cannot be read; the last one stays", key=key, error=str(error))
            return None
        workload = told.spec.id
        if told.node != self._node or key != f"{self._node}.{workload}":
            log.error("a desired state is not for this node", key=key, node=told.node, workload=workload)
            return None
        record = self._shelf.get(workload)
        if record is None:
            await self._shelf.put(workload, Record(desired=told))
            return workload
        if told.revision <= record.desired.revision:
            return None
        await self._shelf.put(workload, record.model_copy(update={"desired": told}))
        return workload

    async def came_to_life(self, workload: str, live: NodeWorkload) -> None:
        await self._update(workload, live=live, failure=None)

    async def failed(self, workload: str, failure: Failure) -> None:
        await self._update(workload, failure=failure)

    async def reported(self, workload: str, revision: int) -> None:
        await self._update(workload, reported=revision)

    async def _update(self, workload: str, **changes: object) -> None:
        await self._shelf.put(workload, self[workload].model_copy(update=changes))

    async def _forget(self, workload: str) -> None:
        record = self._shelf.get(workload)
        if record is not None and record.gone:
            await self._shelf.remove(workload)
        elif record is not None:
            log.warning("the desired state of a workload is missing; the last one stays", workload=workload)
