"""Says every few seconds what this node is, what is used of it and what runs on it: whole each time."""

import uuid
from collections.abc import Awaitable, Callable
from importlib.metadata import version

from contracts.errors import BerthError
from contracts.reports import NodeHeartbeat, RunningInstance

from node_agent.machine import Machine
from node_agent.site import Site

_UNKNOWN = "unknown"


class Heart:
    def __init__(
        self,
        site: Site,
        region: str,
        machine: Machine,
        healthy: Callable[[str, str], bool],
        report: Callable[[NodeHeartbeat], Awaitable[None]],
    ) -> None:
        self._site = site
        self._region = region
        self._machine = machine
        self._healthy = healthy
        self._report = report
        self._boot = uuid.uuid4().hex
        self._sequence = 0
        self._engine = _UNKNOWN
        self._agent = version("berth-node-agent")

    async def beat(self) -> None:
        if self._engine == _UNKNOWN:
            try:
                self._engine = str(await self._site.engine.info())
            except BerthError:
                # The node is there, and its engine is not: said the next time.
                self._engine = _UNKNOWN
        self._sequence += 1
        await self._report(
            NodeHeartbeat(
                node=self._site.node,
                region=self._region,
                boot=self._boot,
                sequence=self._sequence,
                at=self._site.clock.now(),
                capacity=self._machine.capacity(),
                used=self._machine.usage(),
                engine=self._engine,
                agent=self._agent,
                instances=tuple(self._running()),
            )
        )

    def _running(self) -> list[RunningInstance]:
        return [
            RunningInstance(
                **tenure.started.model_dump(exclude={"id", "at", "node"}),
                healthy=self._healthy(tenure.started.workload, tenure.started.instance),
            )
            for tenure in self._site.tenures
            if tenure.stopped is None
        ]
