"""Which instances are part of a workload, from when to when: the source of every meter.

A tenure begins when an instance is ready and ends, once, when it leaves the routes. It is on disk before
anything is done about it: whatever the agent is killed in, the next start goes on there, and no end is
forgotten or doubled; an instance that vanished behind our back ends as lost.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

import structlog
from contracts.events import InstanceStarted, InstanceStopped
from contracts.model import Model
from runtime.clock import Clock

from node_agent.diff import Reason
from node_agent.engine import Identity
from node_agent.journal import Journal
from node_agent.shelf import Shelf, write

log = structlog.get_logger("node-agent.tenure")


class Tenure(Model):
    started: InstanceStarted
    # Set while the instance leaves.
    stopped: InstanceStopped | None = None
    grace_seconds: float
    # Where it was reached; none for a process that listens to nobody.
    endpoint: str | None


class Tenures:
    def __init__(self, folder: Path, node: str, journal: Journal, clock: Clock) -> None:
        self._shelf = Shelf(folder / "tenures", Tenure)
        self._alive = folder / "alive"
        self._node = node
        self._journal = journal
        self._clock = clock
        self._changed: Callable[[], object] = bool
        self._last_seen: datetime | None = None

    def on_change(self, call: Callable[[], None]) -> None:
        self._changed = call

    def open(self) -> None:
        self._shelf.open()
        with suppress(FileNotFoundError):
            text = self._alive.read_text()
            try:
                self._last_seen = datetime.fromisoformat(text)
            except ValueError:
                # A power cut: what ends as lost ends now.
                log.warning("when instances were seen last cannot be read", file=str(self._alive), text=text)

    def __iter__(self) -> Iterator[Tenure]:
        return (tenure for _, tenure in self._shelf)

    def admitted(self, instance: str) -> bool:
        tenure = self._shelf.get(instance)
        return tenure is not None and tenure.stopped is None

    def all_admitted(self, workload: str | None = None) -> set[str]:
        return {
            tenure.started.instance
            for tenure in self
            if tenure.stopped is None and workload in (None, tenure.started.workload)
        }

    def all_leaving(self) -> set[str]:
        return {tenure.started.instance for tenure in self if tenure.stopped is not None}

    async def begin(self, identity: Identity, endpoint: str | None) -> None:
        started = InstanceStarted(
            id=f"{identity.instance}.started",
            at=self._clock.now(),
            node=self._node,
            instance=identity.instance,
            workload=identity.workload,
            organization=identity.organization,
            slot=identity.slot,
            generation=identity.generation,
            deployment=identity.deployment,
            rate=identity.rate,
            started_at=identity.started_at,
        )
        # In this order a crash in between says it again, with the same id, and never not at all.
        await self._journal.append(started)
        tenure = Tenure(started=started, grace_seconds=identity.grace_seconds, endpoint=endpoint)
        await self._shelf.put(identity.instance, tenure)
        self._changed()

    async def end(self, instance: str, reason: Reason, words: str | None = None) -> Tenure:
        """It leaves: from now on it is not metered, and nothing brings it back."""
        tenure = self._shelf.get(instance)
        if tenure is None or tenure.stopped is not None:
            raise ValueError(f"{instance} is not part of a workload")
        return await self._end(tenure, reason, self._clock.now(), words)

    async def finish(self, instance: str, exit_code: int | None) -> None:
        """It is gone."""
        tenure = self._shelf.get(instance)
        if tenure is not None and tenure.stopped is not None:
            await self._journal.append(tenure.stopped.model_copy(update={"exit_code": exit_code}))
            await self._shelf.remove(instance)

    async def lose(self, asked: Collection[str], present: Collection[str]) -> None:
        """Ends the tenures of those of `asked` which are not there any more, though nobody let them go.

        While we were away nobody saw when: the last moment it was seen charges nobody too much.
        """
        for instance in asked:
            tenure = self._shelf.get(instance)
            if tenure is None or tenure.stopped is not None or instance in present:
                continue
            at = max(tenure.started.started_at, self._last_seen or self._clock.now())
            log.warning("an instance is gone", instance=instance, workload=tenure.started.workload)
            await self._end(tenure, "lost", at, "it vanished from the node")
            await self.finish(instance, None)

    def seen_all(self) -> None:
        """Every instance has been looked for, just now, and events tell of each that goes from here on."""
        write(self._alive, self._clock.now().isoformat(), self._alive.parent / "drafts")
        self._last_seen = None

    async def _end(
        self, tenure: Tenure, reason: Reason | Literal["lost"], at: datetime, words: str | None
    ) -> Tenure:
        stopped = InstanceStopped(
            **tenure.started.model_dump(exclude={"id", "at"}),
            id=f"{tenure.started.instance}.stopped",
            at=self._clock.now(),
            stopped_at=at,
            reason=reason,
            words=words,
        )
        ended = tenure.model_copy(update={"stopped": stopped})
        await self._shelf.put(tenure.started.instance, ended)
        self._changed()
        return ended
