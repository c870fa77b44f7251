"""Instances on their way out: no longer routed, drained, asked to stop, removed, reported.

Each takes its own time and holds up nobody; what an agent that was killed had begun, the next one ends.
"""

import asyncio
from pathlib import Path

import structlog
from contracts.errors import BerthError
from runtime.clock import Clock
from runtime.tasks import end

from node_agent.diff import Reason
from node_agent.engine import ContainerEngine
from node_agent.lines import Lines
from node_agent.tenure import Tenure, Tenures

log = structlog.get_logger("node-agent.departures")

# The proxy may still send a request it had begun to route when the switch was confirmed; on a machine that is
# short of CPU it takes its time.
_SHORTEST_DRAIN = 1.0
_LOOK_EVERY = 0.1
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_CONNECTIONS = Path("/proc/net/tcp")
_ESTABLISHED = "01"


class Departures:
    def __init__(
        self, engine: ContainerEngine, tenures: Tenures, lines: Lines, clock: Clock, drain_seconds: float
    ) -> None:
        self._engine = engine
        self._lines = lines
        self._tenures = tenures
        self._clock = clock
        self._drain_seconds = drain_seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def resume(self) -> None:
        for tenure in self._tenures:
            if tenure.stopped is not None:
                self._follow(tenure)

    async def begin(self, instance: str, reason: Reason, words: str | None = None) -> None:
        """It is out of the routes already."""
        self._follow(await self._tenures.end(instance, reason, words))

    async def ended(self, workload: str) -> None:
        """Returns when nothing of the workload is on its way out any more."""
        leaving = [t.started.instance for t in self._tenures if t.started.workload == workload and t.stopped]
        await asyncio.gather(*(self._tasks[name] for name in leaving if name in self._tasks))

    async def close(self) -> None:
        """The instances are left as they are."""
        await end(self._tasks.values())

    def _follow(self, tenure: Tenure) -> None:
        instance = tenure.started.instance
        task = asyncio.create_task(self._depart(tenure), name=f"departure {instance}")
        self._tasks[instance] = task
        task.add_done_callback(lambda _: self._tasks.pop(instance, None))

    async def _depart(self, tenure: Tenure) -> None:
        instance = tenure.started.instance
        pause = _FIRST_PAUSE
        if tenure.endpoint is not None:
            try:
                await self._drain(tenure.endpoint)
            except OSError as error:
                log.warning("an instance is stopped undrained", instance=instance, error=str(error))
        while True:
            try:
                code = await self._engine.stop(instance, tenure.grace_seconds)
                await self._lines.finish(instance)
                await self._engine.remove(instance)
                await self._tenures.finish(instance, code)
                return
            except Exception as error:
                # Whatever it is: nobody besides would stop it, and it is metered until it has stopped.
                if pause == _FIRST_PAUSE:
                    known = isinstance(error, BerthError | OSError)
                    log.warning(
                        "an instance cannot be stopped yet",
                        instance=instance,
                        error=str(error),
                        exc_info=None if known else error,
                    )
                await self._clock.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _drain(self, endpoint: str) -> None:
        end = self._clock.monotonic() + self._drain_seconds
        await self._clock.sleep(min(_SHORTEST_DRAIN, self._drain_seconds))
        while self._clock.monotonic() < end:
            if not connected(endpoint, await asyncio.to_thread(_CONNECTIONS.read_text)):
                return
            await self._clock.sleep(_LOOK_EVERY)


def connected(endpoint: str, table: str) -> bool:
    """Whether `/proc/net/tcp` shows an open connection from this machine to `ip:port`."""
    address, _, port = endpoint.rpartition(":")
    octets = bytes(int(part) for part in address.split("."))
    remote = f"{int.from_bytes(octets, 'little'):08X}:{int(port):04X}"
    return any(columns[2:4] == [remote, _ESTABLISHED] for columns in map(str.split, table.splitlines()))
