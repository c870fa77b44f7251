"""Brings one instance from nothing, or from where it is, to readiness; or says in words why not."""

from collections.abc import Callable
from dataclasses import dataclass, field

from contracts.errors import BerthError, NotFound, ProviderFailed
from contracts.ids import new_id
from contracts.workload import NodeWorkload, Slot

from node_agent.diff import Raise
from node_agent.engine import ROUTED, Blueprint, Identity, Instance, Mount
from node_agent.health import examine, until_ready
from node_agent.site import Site

# A process that listens to nobody counts as ready when it has run for so long.
_SETTLED_SECONDS = 2.0
_LOOK_EVERY = 0.05
_LOG_TAIL = 50


def routed(instance: Instance) -> bool:
    return instance.identity.slot.process == ROUTED


@dataclass(frozen=True, slots=True)
class Setback:
    """An instance that was to be raised, and was not."""

    slot: Slot
    reason: str
    instance: str | None = None
    log_tail: tuple[str, ...] = field(default=())


class Launcher:
    def __init__(self, site: Site) -> None:
        self._site = site
        # How each instance ended while it is being raised.
        self._ends: dict[str, list[str]] = {}

    def died(self, instance: str, ending: str) -> bool:
        """Whether it is being raised, and its end is told of there."""
        if instance not in self._ends:
            return False
        self._ends[instance].append(ending)
        return True

    async def launch(
        self, step: Raise, wanted: NodeWorkload, present: Instance | None, superseded: Callable[[], bool]
    ) -> Instance | Setback:
        """`present` is the step's instance; `superseded` says when nobody waits for it any more."""
        name = None if present is None else present.identity.instance
        try:
            if present is None:
                await self._site.images.ensure(str(wanted.spec.image))
            async with self._site.starts:
                instance = present or await self._created(step.slot, wanted, superseded)
                name = instance.identity.instance
                self._ends[name] = []
                if present is None or step.start:
                    await self._site.engine.start(name)
                    self._site.lines.follow(instance.identity, new=present is None)
            why = await self._until_ready(instance, superseded)
        except (ProviderFailed, NotFound) as error:
            return Setback(step.slot, f"{step.slot} could not be started: {error.message}", name)
        finally:
            self._ends.pop(name or "", None)
        if why is None:
            return Instance(instance.identity, "running", instance.address)
        return Setback(step.slot, f"{step.slot} {why}", name, await self.said(name))

    async def _created(self, slot: Slot, wanted: NodeWorkload, superseded: Callable[[], bool]) -> Instance:
        engine, mounts = self._site.engine, self._site.mounts
        if not wanted.spec.volumes:
            return await engine.create(self._blueprint(slot, wanted))
        async with mounts.alone(wanted.spec.id):
            if superseded():
                raise ProviderFailed("it was given up for a newer state")
            return await engine.create(self._blueprint(slot, wanted, await mounts.attach(wanted)))

    def _blueprint(self, slot: Slot, wanted: NodeWorkload, mounts: tuple[Mount, ...] = ()) -> Blueprint:
        spec, now = wanted.spec, self._site.clock.now()
        return Blueprint(
            identity=Identity.of(spec, slot, new_id("ins", now.timestamp()), now),
            image=str(spec.image),
            command=spec.processes[slot.process].command,
            uid=spec.uid,
            limits=spec.limits,
            environment=self._site.environment.of(wanted, slot),
            runtime=spec.needs.runtime,
            mounts=mounts,
        )

    async def _until_ready(self, instance: Instance, superseded: Callable[[], bool]) -> str | None:
        identity, clock = instance.identity, self._site.clock
        ends = self._ends[identity.instance]

        async def given_up() -> str | None:
            if superseded():
                return "was given up for a newer state"
            if len(ends) >= identity.health.retries:
                return f"ended {len(ends)} times before it was ready, the last time: {ends[-1]}"
            return None

        if routed(instance):

            async def ask() -> str | None:
                return await examine(self._site.engine, instance)

            return await until_ready(identity.health, ask, clock, given_up)
        deadline = clock.monotonic() + identity.health.start_seconds
        settled = min(_SETTLED_SECONDS, identity.health.start_seconds / 2)
        known, since = len(ends), clock.monotonic()
        while clock.monotonic() < since + settled:
            if (why := await given_up()) is not None:
                return why
            if len(ends) != known:
                known, since = len(ends), clock.monotonic()
            if clock.monotonic() > deadline:
                return f"did not keep running within {identity.health.start_seconds:g} s"
            await clock.sleep(_LOOK_EVERY)
        return None

    async def said(self, instance: str) -> tuple[str, ...]:
        try:
            return await self._site.engine.log_tail(instance, _LOG_TAIL)
        except BerthError as error:
            return (f"(no log: {error.message})",)
