"""What this node should run, workload by workload, as the scheduler said it last: kept on disk (I6).

A lower revision never replaces a higher one, and only a specification that says so takes a workload away: a
key that is missing, a bucket that is empty or a value that cannot be read is no order at all.
"""

from pathlib import Path

import structlog
from contracts.model import Model
from contracts.workload import NodeWorkload, WorkloadSpec
from pydantic import ValidationError

from node_agent.shelf import Shelf

log = structlog.get_logger("node-agent.desired")


class Failure(Model):
    """A generation that did not come to life here."""

    generation: int
    fingerprint: str
    reason: str
    log_tail: tuple[str, ...] = ()

    def of(self, spec: WorkloadSpec) -> bool:
        return (self.generation, self.fingerprint) == (spec.generation, spec.fingerprint())


class Record(Model):
    desired: NodeWorkload
    # What came to life last: it stays when `desired` does not.
    live: NodeWorkload | None = None
    failure: Failure | None = None
    # How often it has failed, one time after the other; and that it is tried once more.
    tries: int = 0
    again: bool = False
    # The highest revision whose outcome has been told.
    reported: int = 0
    # The scheduler has taken it out of its words: once it is gone here too, nobody needs the name any more.
    forgotten: bool = False

    @property
    def failed(self) -> bool:
        return (
            self.failure is not None
            and not self.again
            and bool(self.desired.slots)
            and self.failure.of(self.desired.spec)
        )

    @property
    def persists(self) -> bool:
        """What failed is tried again for as long as it is wanted: nothing else serves here that would have to
        make room for the attempt. A release that fails where the one before it serves has had its chance."""
        live = self.live
        if live is None or not live.slots:
            return self.failed
        return self.failed and live.spec.fingerprint() == self.desired.spec.fingerprint()

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
        record = self.get(workload)
        if record is None:
            raise KeyError(workload)
        return record

    def get(self, workload: str) -> Record | None:
        return self._shelf.get(workload)

    def __contains__(self, workload: str) -> bool:
        return self._shelf.get(workload) is not None

    def workloads(self) -> list[str]:
        return [workload for workload, _ in self._shelf]

    async def accept(self, key: str, value: bytes | None) -> str | None:
        """A value of the bucket; the workload that has something to do because of it."""
        if value is None:
            return await self._forget(key.partition(".")[2])
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
        await self._update(workload, live=live, failure=None, again=False)

    async def failed(self, workload: str, failure: Failure) -> int:
        """How often it has by now."""
        record = self[workload]
        before = record.failure is not None and record.failure.of(record.desired.spec)
        tries = record.tries + 1 if before else 1
        await self._update(workload, failure=failure, tries=tries, again=False)
        return tries

    async def try_again(self, workload: str) -> Record:
        """What comes of it is told anew."""
        record = self[workload]
        untold = min(record.reported, record.desired.revision - 1)
        await self._update(workload, again=True, reported=untold)
        return self[workload]

    async def reported(self, workload: str, revision: int) -> None:
        await self._update(workload, reported=revision)

    async def _update(self, workload: str, **changes: object) -> None:
        await self._shelf.put(workload, self[workload].model_copy(update=changes))

    async def _forget(self, workload: str) -> str | None:
        record = self._shelf.get(workload)
        if record is None:
            return None
        if record.desired.spec.state != "deleted":
            log.warning("the desired state of a workload is missing; the last one stays", workload=workload)
            return None
        await self._update(workload, forgotten=True)
        return workload

    async def leave(self, workload: str) -> None:
        """Nothing of it is here any more."""
        record = self._shelf.get(workload)
        if record is not None and record.gone and record.forgotten:
            await self._shelf.remove(workload)
