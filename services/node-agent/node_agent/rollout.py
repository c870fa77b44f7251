"""Keeps one workload on this node at what is wanted: one step after the other, beside all other workloads.

A new release comes to life as a whole or not at all: its instances are started, asked until they are ready,
routed and confirmed through the proxy; only then do the old ones leave. What does not come to life is removed
and reported, and the old release stays; where there is none, it is tried again later and later. What has come
to life is repaired instance by instance, for ever.
"""

import asyncio
from collections.abc import Awaitable, Iterable
from functools import partial
from typing import TypeVar

import structlog
from contracts.errors import BerthError
from contracts.workload import NodeWorkload, Slot, WorkloadSpec

from node_agent import outcomes, serving
from node_agent.crash_reports import CrashReports
from node_agent.desired import Record
from node_agent.diff import Action, Discard, Raise, Retire, Seen, batches, diff
from node_agent.endings import words
from node_agent.engine import EngineEvent, Instance
from node_agent.health import examine
from node_agent.launch import Launcher, Setback, routed
from node_agent.routes_file import Served
from node_agent.site import Site
from node_agent.sleep import allowed
from node_agent.watch import Watch

T = TypeVar("T")

log = structlog.get_logger("node-agent.rollout")

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_FIRST_REPAIR_PAUSE, _LONGEST_REPAIR_PAUSE = 5.0, 300.0


class Keeper:
    def __init__(self, site: Site, workload: str) -> None:
        self.workload = workload
        self._site = site
        self._wake = asyncio.Event()
        self._wake.set()
        self._watch = Watch(site.clock, partial(examine, site.engine), self.wake)
        self._crashes = CrashReports(site)
        self._instances: dict[str, Instance] = {}
        self._launcher = Launcher(site)
        self._repair_pause = _FIRST_REPAIR_PAUSE
        self._repair_after = 0.0
        self._retry_after = 0.0
        # Whether requests from other nodes are answered here.
        self._served_here = workload in site.proxy.published()
        self._log = log.bind(workload=workload)

    # --- what others tell it -------------------------------------------------------------------------

    def wake(self) -> None:
        self._wake.set()

    async def died(self, event: EngineEvent) -> None:
        live = self._site.desired[self.workload].live
        memory = None if live is None else live.spec.limits.memory_mb
        ending = words(event.exit_code, out_of_memory=event.out_of_memory, memory_mb=memory)
        raised = self._launcher.died(event.instance, ending)
        self._watch.pause(event.instance)
        self.wake()
        instance = self._instances.get(event.instance)
        if not raised and instance is not None and self._site.tenures.admitted(event.instance):
            await self._crashes.note(instance, event.exit_code, ending)

    def rouse(self) -> None:
        """Somebody waits for it: what kept it from being raised may be over."""
        self._repair_pause, self._repair_after = _FIRST_REPAIR_PAUSE, 0.0
        self._retry_after = 0.0
        self.wake()

    def condemn(self, instance: str, why: str) -> None:
        self._watch.condemn(instance, why)

    def compare(self, instances: list[Instance]) -> None:
        """Wakes up when these, those that leave aside, are not as they should be."""
        record = self._site.desired[self.workload]
        present = {instance.identity.instance: instance for instance in instances}
        known = {name: instance.state for name, instance in self._instances.items()}
        changed = known != {name: instance.state for name, instance in present.items()}
        asleep = self._site.sleep.asleep(self.workload)
        steps = diff(record.wanted, self._seen(present), asleep=asleep)
        if changed or steps or record.reported < record.desired.revision:
            self.wake()

    # --- its life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the workload is gone."""
        pause = _FIRST_PAUSE
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self._settle()
                    pause = _FIRST_PAUSE
                    if self._site.desired[self.workload].gone and not self._instances:
                        return
                except Exception as error:
                    # Whatever it is, the other workloads go on, and this one is tried again.
                    if pause == _FIRST_PAUSE:
                        known = isinstance(error, BerthError)
                        self._log.warning("not settled", error=str(error), exc_info=None if known else error)
                    asyncio.get_running_loop().call_later(pause, self.wake)
                    pause = min(pause * 2, _LONGEST_PAUSE)
        finally:
            self._watch.close()

    async def _settle(self) -> None:
        record = self._site.desired[self.workload]
        await self._site.sleep.check(record.desired)
        await self._look()
        if record.persists:
            wait = self._retry_after - self._site.clock.monotonic()
            if wait <= 0:
                record = await self._site.desired.try_again(self.workload)
            else:
                asyncio.get_running_loop().call_later(wait, self.wake)
        wanted, asleep = record.wanted, self._site.sleep.asleep(self.workload)
        steps = diff(wanted, self._seen(self._instances), asleep=asleep)
        for step in steps:
            if isinstance(step, Discard):
                await self._remove(step.instance)
        raises = [step for step in steps if isinstance(step, Raise)]
        if raises and wanted is not None and wanted.spec.volumes:
            await self._clear(record, steps)
        elif raises and record.live is not None:
            # An address that was lost may soon be another's: it leaves the routes before anything is made.
            await self._prepare(record)
        if record.rolling_out:
            assert wanted is not None
            if not await self._roll_out(record, wanted, raises):
                self.wake()
                return
            unraised: set[Slot] = set()
        else:
            unraised = await self._repair(record, raises)
        if self._superseded(record.desired) or asleep != self._site.sleep.asleep(self.workload):
            # What has come meanwhile was not what was settled here, and must not be told as if it were.
            self.wake()
            return
        record = self._site.desired[self.workload]
        if record.desired.spec.state == "deleted":
            await self._site.proxy.withdraw(self.workload)
            self._site.endpoints.withdraw(self.workload)
            self._site.waker.tell(self.workload, ())
        else:
            await self._serve(record)
        for step in steps:
            # Where there are volumes, what was in the way has been let go already.
            if isinstance(step, Retire) and step.slot not in unraised and step.instance in self._instances:
                await self._let_go(step)
        running = bool(self._instances)
        if record.desired.spec.state == "deleted":
            # Its end is told of when it has one: what is told of may be forgotten.
            await self._site.mounts.keep(record, running=running)
            await self._report(record)
        else:
            await self._report(record)
            await self._site.mounts.keep(record, running=running)

    async def _look(self) -> None:
        """What the engine has of the workload, and what that means for those who are watched."""
        tenures = self._site.tenures
        # Asked first: one that is gone by the time the list is here must not look like an unknown one.
        leaving, admitted = tenures.all_leaving(), tenures.all_admitted(self.workload)
        found = await self._site.engine.instances(self.workload)
        present = {instance.identity.instance: instance for instance in found}
        await tenures.lose(admitted, present)
        self._instances = {name: i for name, i in present.items() if name not in leaving}
        for name in self._watch.followed():
            if name not in self._instances:
                self._watch.forget(name)
            elif self._instances[name].state != "running":
                self._watch.pause(name)
        await asyncio.gather(
            *(
                self._watch.follow(instance)
                for name, instance in self._instances.items()
                if instance.state == "running" and routed(instance) and tenures.admitted(name)
            )
        )

    def _seen(self, instances: dict[str, Instance]) -> list[Seen]:
        return [
            Seen(
                instance=name,
                slot=instance.identity.slot,
                fingerprint=instance.identity.fingerprint,
                state=instance.state,
                admitted=self._site.tenures.admitted(name),
                ready=self.ready(name),
                broken=self._watch.broken(name) is not None,
            )
            for name, instance in instances.items()
        ]

    def ready(self, name: str) -> bool:
        instance = self._instances.get(name)
        if instance is None or instance.state != "running":
            return False
        return not routed(instance) or self._watch.ready(name)

    # --- a new release ---------------------------------------------------------------------------------

    async def _roll_out(self, record: Record, wanted: NodeWorkload, raises: list[Raise]) -> bool:
        """Whether it has come to life. If not, what is wanted now is another thing."""
        with self._site.telemetry.span("rollout", carrier=wanted.spec.trace, workload=self.workload):
            return await self._bring_to_life(record, wanted, raises)

    async def _bring_to_life(self, record: Record, wanted: NodeWorkload, raises: list[Raise]) -> bool:
        if record.live is None:
            # The proxy learns the hostnames while the instances start.
            _, born = await asyncio.gather(self._prepare(record), self._raise_all(wanted, raises))
        else:
            born = await self._raise_batches(record, wanted, raises)
        if not born:
            return False
        await self._site.desired.came_to_life(self.workload, wanted)
        self._repair_pause, self._repair_after = _FIRST_REPAIR_PAUSE, 0.0
        return True

    async def _clear(self, record: Record, steps: Iterable[Action]) -> None:
        """Data is one instance's of a slot at a time: the old one has ended before a new one begins."""
        for step in steps:
            if isinstance(step, Retire):
                await self._let_go(step)
        await self._prepare(record)
        await self._site.mounts.withdraw(record)
        await self._site.departures.ended(self.workload)

    async def _raise_batches(self, record: Record, wanted: NodeWorkload, raises: list[Raise]) -> bool:
        """Each batch takes the place of the old ones of its slots before the next begins. When one fails, the
        old release is what is wanted again, and those which have left are raised anew."""
        parts = batches(raises, self._site.rollout_batch, len(wanted.slots))
        for number, part in enumerate(parts, 1):
            if not await self._raise_all(wanted, part):
                return False
            if number < len(parts):
                slots = {step.slot for step in part}
                old = [
                    Retire(name, one.identity.slot, "replaced")
                    for name, one in self._instances.items()
                    if one.identity.slot in slots and one.identity.fingerprint != wanted.spec.fingerprint()
                ]
                leaving = {step.instance for step in old}
                await self._publish(record, serving.of_both(self._admitted(), leaving, self.ready))
                for step in old:
                    if self._site.tenures.admitted(step.instance):
                        await self._let_go(step)
                # The machine holds a batch twice, and not the app.
                await self._site.departures.ended(self.workload)
        return True

    async def _raise_all(self, wanted: NodeWorkload, raises: list[Raise]) -> bool:
        """Whether all of them have come to life, as a whole or not at all."""
        raised = await _all(self._launch(step, wanted) for step in raises)
        if self._superseded(wanted):
            return False
        setbacks = [outcome for outcome in raised if isinstance(outcome, Setback)]
        if setbacks:
            await self._fail(wanted.spec, setbacks)
            return False
        for outcome in raised:
            if isinstance(outcome, Instance):
                await self._admit(outcome)
        return True

    async def _prepare(self, record: Record) -> None:
        try:
            await self._serve(record)
        except BerthError as error:
            # It is published again, and waited for, when there is something to switch to.
            self._log.info("the proxy is not prepared", error=error.message)

    async def _fail(self, spec: WorkloadSpec, setbacks: list[Setback]) -> None:
        failure = outcomes.failure(spec, setbacks)
        self._log.warning("release did not come to life", generation=spec.generation, reason=failure.reason)
        tries = await self._site.desired.failed(self.workload, failure)
        self._retry_after = self._site.clock.monotonic() + outcomes.pause(tries)

    def _superseded(self, wanted: NodeWorkload) -> bool:
        return self._site.desired[self.workload].desired.revision != wanted.revision

    # --- a living one ----------------------------------------------------------------------------------

    async def _repair(self, record: Record, raises: list[Raise]) -> set[Slot]:
        """Each by itself; the slots that could not be filled are tried again later and later."""
        wanted = record.wanted
        if wanted is None or not raises:
            return set()
        clock = self._site.clock
        wait = self._repair_after - clock.monotonic()
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self.wake)
            return {step.slot for step in raises}

        async def repair(step: Raise) -> Slot | None:
            outcome = await self._launch(step, wanted)
            if isinstance(outcome, Instance):
                await self._admit(outcome)
                await self._serve(record)
                return None
            self._log.warning("an instance was not replaced", reason=outcome.reason)
            self._site.waker.failed(self.workload, outcome.reason)
            if outcome.instance is None:
                await self._make_room(step.slot)
            elif self._site.tenures.admitted(outcome.instance):
                self._watch.condemn(outcome.instance, outcome.reason)
            else:
                await self._remove(outcome.instance)
            return step.slot

        unraised = {slot for slot in await _all(repair(step) for step in raises) if slot is not None}
        if unraised and not self._superseded(record.desired):
            self._repair_after = clock.monotonic() + self._repair_pause
            asyncio.get_running_loop().call_later(self._repair_pause, self.wake)
            self._repair_pause = min(self._repair_pause * 2, _LONGEST_REPAIR_PAUSE)
        elif not unraised:
            self._repair_pause = _FIRST_REPAIR_PAUSE
        return unraised

    async def _make_room(self, slot: Slot) -> None:
        """Nothing can be made in place of one that has to go: it may be why there is no room."""
        for name, one in list(self._instances.items()):
            if one.identity.slot == slot and self._watch.condemned(name):
                await self._let_go(Retire(name, slot, "unhealthy"))

    # --- one instance ------------------------------------------------------------------------------------

    async def _launch(self, step: Raise, wanted: NodeWorkload) -> Instance | Setback:
        present = None if step.instance is None else self._instances[step.instance]
        superseded = self._site.desired[self.workload].desired.revision

        def is_superseded() -> bool:
            return self._site.desired[self.workload].desired.revision != superseded

        outcome = await self._launcher.launch(step, wanted, present, is_superseded)
        if isinstance(outcome, Instance):
            self._instances[outcome.identity.instance] = outcome
        return outcome

    async def _admit(self, instance: Instance) -> None:
        identity = instance.identity
        self._watch.is_ready(identity.instance)
        self._site.traffic.touch(self.workload)
        if not self._site.tenures.admitted(identity.instance):
            endpoint = f"{instance.address}:{identity.port}" if routed(instance) else None
            await self._site.tenures.begin(identity, endpoint)
        if routed(instance):
            await self._watch.follow(instance)

    async def _remove(self, instance: str) -> None:
        # One that goes on to speak would be read without an end.
        await self._site.engine.stop(instance, 0)
        await self._site.lines.finish(instance)
        await self._site.engine.remove(instance)
        self._instances.pop(instance, None)
        self._watch.forget(instance)

    async def _let_go(self, step: Retire) -> None:
        words = self._watch.broken(step.instance)
        try:
            await self._site.departures.begin(step.instance, step.reason, words)
        except OSError:
            if self._watch.condemned(step.instance):
                # There may be no room to write it down before it has gone.
                await self._site.engine.stop(step.instance, 0)
                await self._site.engine.remove(step.instance)
            raise
        self._instances.pop(step.instance, None)
        self._watch.forget(step.instance)

    # --- what others see -----------------------------------------------------------------------------

    async def _serve(self, record: Record) -> None:
        await self._publish(record, () if self._held(record) else self._addresses(record.live))

    def _held(self, record: Record) -> bool:
        """Requests wait: it sleeps, or it may, and nothing of it answers just now."""
        ready = any(self.ready(one.identity.instance) for one in self._admitted())
        return self._site.sleep.asleep(self.workload) or (allowed(record.desired) and not ready)

    async def _publish(self, record: Record, addresses: tuple[str, ...]) -> None:
        site = self._site
        # Who waits at the door already does not wait for the proxy.
        site.waker.tell(self.workload, addresses)
        door = (site.waker.address,) if allowed(record.desired) else ()
        able = {f"{i.address}:{i.identity.port}" for i in self._admitted() if self.ready(i.identity.instance)}
        # Requests from other nodes wake it too.
        healthy = tuple(address for address in addresses if address in able) or door
        if site.neighbourhood is not None:
            if self._served_here and able and not (addresses or door):
                await site.neighbourhood.farewell(self.workload, site.endpoints)
            if not healthy and site.neighbourhood.shares(self.workload):
                # Others are, so nobody has to try those which may not be.
                addresses = ()
        hostnames = site.routes.hostnames(self.workload, record.desired.spec.organization)
        counted = site.traffic.counted(self.workload)
        await site.proxy.publish(Served(self.workload, hostnames, addresses or door, counted=counted))
        self._served_here = bool(addresses or door)
        site.endpoints.say(self.workload, healthy)

    def _addresses(self, live: NodeWorkload | None) -> tuple[str, ...]:
        return serving.addresses(self._admitted(), live, self.ready)

    def _admitted(self) -> list[Instance]:
        """Those that are routed, or would be."""
        admitted = self._site.tenures.admitted
        return [i for name, i in sorted(self._instances.items()) if routed(i) and admitted(name)]

    async def _report(self, record: Record) -> None:
        if record.reported >= record.desired.revision:
            return
        running = sum(self._site.tenures.admitted(name) for name in self._instances)
        # What the newest one has printed while it came to life.
        newest = max(self._instances, default=None)
        said = () if newest is None else await self._launcher.said(newest)
        told = outcomes.finished(
            self._site.node,
            self._site.clock.now(),
            record,
            running,
            said,
            asleep=self._site.sleep.asleep(self.workload),
        )
        await self._site.journal.append(told)
        await self._site.desired.reported(self.workload, record.desired.revision)
        self._log.info(
            "rollout finished", generation=told.generation, ok=told.ok, running=running, reason=told.reason
        )


async def _all(works: Iterable[Awaitable[T]]) -> list[T]:
    """Every one is carried to its end before an error of one is raised."""
    outcomes = await asyncio.gather(*works, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
