"""The whole of one node: a keeper for each workload, and what wakes them.

A change of what is wanted, an event of the engine and a slow timer all lead to the same place: the keeper
compares what should be with what is. Nothing an app needs depends on who else is away.
"""

import asyncio
from collections import defaultdict

import structlog
from contracts.errors import BerthError
from contracts.workload import NodeWorkload
from runtime.bucket import Bucket
from runtime.tasks import end

from node_agent.copies import Copies
from node_agent.engine import EngineEvent, Instance
from node_agent.exec import Sessions
from node_agent.firewall import CannotIsolate
from node_agent.jobs import Jobs
from node_agent.overdraft import overdrawn
from node_agent.rollout import Keeper
from node_agent.site import Site
from node_agent.sleep import allowed

log = structlog.get_logger("node-agent.node")


class Node:
    def __init__(self, site: Site, jobs: Jobs, sessions: Sessions, copies: Copies) -> None:
        self._site = site
        self._jobs = jobs
        self._sessions = sessions
        self._copies = copies
        self._keepers: dict[str, Keeper] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._strangers: set[str] = set()

    async def open(self) -> None:
        site = self._site
        for shelf in (site.desired, site.routes, site.journal, site.tenures, site.sleep, self._jobs):
            await asyncio.to_thread(shelf.open)
        if site.neighbourhood is not None:
            await asyncio.to_thread(site.neighbourhood.open)
        await site.waker.open()
        await asyncio.to_thread(site.volumes.thaw)
        await asyncio.to_thread(self._copies.open)
        await site.proxy.open()
        try:
            await site.engine.reassert()
            await self._withdraw_stale()
        except CannotIsolate:
            raise
        except BerthError as error:
            log.warning("the engine is not in order", error=error.message)
        site.departures.resume()
        self._jobs.resume()
        for workload in site.desired.workloads():
            if not site.desired[workload].gone:
                try:
                    await site.sleep.say_again(site.desired[workload].desired)
                except OSError as error:
                    # Whoever is over his plan is found, and the full disk emptied, by an agent that runs.
                    log.warning("it is not said that an app sleeps", workload=workload, error=str(error))
                self._keeper(workload)

    async def _withdraw_stale(self) -> None:
        """Routes of instances that have gone lead to addresses that are given away again, to anybody."""
        there = {instance.identity.workload for instance in await self._site.engine.instances()}
        for workload in self._site.proxy.published() - there:
            if self._site.sleep.asleep(workload):
                continue
            log.info("routes of nothing that runs are withdrawn", workload=workload)
            await self._site.proxy.withdraw(workload)

    async def close(self) -> None:
        """The instances are left as they are."""
        await end([*self._tasks.values()])
        await self._site.waker.close()
        await self._sessions.close()
        await self._copies.close()
        await self._jobs.close()
        await self._site.departures.close()
        self._site.lines.close()
        await self._site.images.close()
        await self._site.engine.close()

    def keeps(self, workload: str) -> bool:
        return workload in self._keepers

    def healthy(self, workload: str, instance: str) -> bool:
        keeper = self._keepers.get(workload)
        return keeper is not None and keeper.ready(instance)

    # --- sleep -------------------------------------------------------------------------------------------

    async def rouse(self, workload: str) -> None:
        """Somebody asks for it, and waits."""
        if await self._site.sleep.wake(self._site.desired[workload].desired):
            self._site.traffic.touch(workload)
            self._keeper(workload).rouse()

    def crowded(self, workload: str) -> None:
        if workload in self._keepers:
            self._keepers[workload].wake()

    async def fall_asleep(self) -> None:
        """What may sleep and has had no request for as long as its owner said."""
        site = self._site
        found = [site.desired[workload] for workload in self._keepers if workload in site.desired]
        might = {
            record.desired.spec.id: record.desired
            for record in found
            if allowed(record.desired)
            and not record.rolling_out
            and not site.sleep.asleep(record.desired.spec.id)
        }
        # The ingress is asked only where somebody is about to fall asleep.
        if not any(self._due(wanted) for wanted in might.values()) or not await site.traffic.look():
            return
        endpoints = {
            tenure.endpoint: tenure.started.workload
            for tenure in site.tenures
            if tenure.endpoint is not None and tenure.started.workload in might
        }
        due = {w for w, wanted in might.items() if self._due(wanted)}
        if due:
            for workload in await site.traffic.open_connections(endpoints):
                site.traffic.touch(workload)
        for workload in due:
            if self._due(might[workload]):
                await site.sleep.begin(might[workload])
                self._keeper(workload).wake()

    def _due(self, wanted: NodeWorkload) -> bool:
        if self._site.waker.busy(wanted.spec.id):
            self._site.traffic.touch(wanted.spec.id)
        after = wanted.spec.sleep_seconds
        if after is None or not self._site.traffic.counted(wanted.spec.id):
            return False
        return self._site.traffic.idle_seconds(wanted.spec.id) >= after

    # --- what wakes the keepers --------------------------------------------------------------------------

    async def follow_desired(self, bucket: Bucket) -> None:
        async for change in bucket.watch(f"{self._site.node}.>"):
            if change is not None:
                workload = await self._site.desired.accept(change.key, change.value)
                if workload is not None:
                    self._keeper(workload).wake()

    async def follow_routes(self, bucket: Bucket) -> None:
        async for change in bucket.watch():
            if change is None:
                self._site.endpoints.say_again()
                continue
            for workload in await self._site.routes.accept(change.key, change.value):
                if workload in self._keepers:
                    self._keepers[workload].wake()
                elif self._site.neighbourhood is not None:
                    self._site.neighbourhood.elsewhere.touch([workload])

    async def follow_engine(self) -> None:
        async for event in self._site.engine.events():
            if event is None:
                await self.reconcile()
            else:
                await self._happened(event)

    async def _happened(self, event: EngineEvent) -> None:
        keeper = self._keepers.get(event.workload)
        if keeper is None:
            return
        if event.kind == "died":
            await keeper.died(event)
        else:
            keeper.wake()

    async def reconcile(self) -> None:
        """What no event told of is found here."""
        site = self._site
        await site.engine.reassert()
        leaving, admitted = site.tenures.all_leaving(), site.tenures.all_admitted()
        followed = site.lines.followed()
        found: defaultdict[str, list[Instance]] = defaultdict(list)
        everything = await site.engine.instances()
        for instance in everything:
            if instance.state != "created":
                site.lines.follow(instance.identity)
            if instance.identity.instance not in leaving:
                found[instance.identity.workload].append(instance)
        for workload in found.keys() - self._keepers.keys():
            self._adopt(workload, found[workload])
        for workload, keeper in self._keepers.items():
            keeper.compare(found[workload])
        present = {instance.identity.instance for instance in everything}
        await site.tenures.lose(admitted, present)
        for gone in followed - present:
            await site.lines.finish(gone)
        site.tenures.seen_all()

    def _adopt(self, workload: str, instances: list[Instance]) -> None:
        if workload in self._site.desired:
            self._keeper(workload)
            return
        # Nobody said that it is to go: the desired state may be what is missing.
        for instance in instances:
            if instance.identity.instance not in self._strangers:
                self._strangers.add(instance.identity.instance)
                log.warning(
                    "an instance of an unknown workload is left alone",
                    workload=workload,
                    instance=instance.identity.instance,
                )

    async def measure_disks(self) -> None:
        """One that wrote more than its plan allows is replaced by a fresh one."""
        await self._jobs.measure_disks()
        site = self._site
        for tenure in site.tenures:
            started = tenure.started
            keeper = self._keepers.get(started.workload)
            if keeper is None or tenure.stopped is not None:
                continue
            live = site.desired[started.workload].live
            if live is None:
                continue
            words = await overdrawn(site, started.instance, live.spec.limits.disk_mb)
            if words is not None:
                keeper.condemn(started.instance, words)

    # --- the keepers ---------------------------------------------------------------------------------------

    def _keeper(self, workload: str) -> Keeper:
        keeper = self._keepers.get(workload)
        if keeper is None:
            keeper = self._keepers[workload] = Keeper(self._site, workload)
            task = asyncio.create_task(self._keep(keeper), name=f"workload {workload}")
            self._tasks[workload] = task
        return keeper

    async def _keep(self, keeper: Keeper) -> None:
        try:
            await keeper.run()
        finally:
            # In one step: who is told of something from here on asks for a new one.
            del self._keepers[keeper.workload], self._tasks[keeper.workload]
        await self._site.desired.leave(keeper.workload)
