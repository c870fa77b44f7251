"""The scheduler at work, and the tests in the parts of gateway and nodes."""

from typing import Any

import pytest
from contracts.queries import AllNodes, NodeInfo, Workloads, WorkloadsAfter
from contracts.reports import NodeHeartbeat
from contracts.workload import NodeWorkload, WorkloadSpec
from runtime.bucket import Bucket
from runtime.bus import Bus
from runtime.runtime import Runtime

from tests.harness import Harness, eventually
from tests.scheduler.samples import heartbeat


class Stage:
    """What gateway and nodes say, and what they get to see."""

    def __init__(self, harness: Harness, everybody: Bus, scheduler: Runtime) -> None:
        self.harness = harness
        self.bus = everybody
        # A runtime of the scheduler's own, to look into its tables and to play a second replica.
        self.runtime = scheduler
        self.bucket: Bucket = everybody.bucket("desired")
        self.snapshot: list[WorkloadSpec] = []

    def nudge(self, name: str) -> None:
        """A loop of the scheduler that runs, if one does."""
        for host in self.harness.hosts.values():
            for loop in host.service.loops:
                if loop.name == name:
                    loop.nudge()

    async def workloads(self, query: WorkloadsAfter) -> Workloads:
        later = sorted((s for s in self.snapshot if s.id > (query.after or "")), key=lambda s: s.id)
        page = later[:2]
        return Workloads(specs=tuple(page), next=page[-1].id if len(later) > len(page) else None)

    async def report(self, *reports: NodeHeartbeat) -> None:
        """Returns when the scheduler knows."""
        for report in reports:
            await self.bus.report(report)
        for report in reports:

            async def known(report: NodeHeartbeat = report) -> bool:
                rows = await self.runtime.store.read(
                    "select 1 from node where name = %s and boot = %s and sequence >= %s",
                    (report.node, report.boot, report.sequence),
                )
                return bool(rows)

            await eventually(known, what=f"the heartbeat of {report.node}")

    async def joins(self, *names: str, **is_: Any) -> None:
        await self.report(*(heartbeat(name, **is_) for name in names))

    async def node(self, name: str = "n1") -> NodeInfo:
        found = {node.name: node for node in (await self.bus.ask(AllNodes())).nodes}
        return found[name]

    async def desired(self, node: str, workload: str) -> NodeWorkload | None:
        entry = await self.bucket.get(f"{node}.{workload}")
        return None if entry is None else NodeWorkload.model_validate_json(entry.value)

    async def told(
        self, node: str, of: WorkloadSpec, *, slots: int, generation: int | None = None
    ) -> NodeWorkload:
        """What the node is told of a workload, once it is this."""
        wanted = generation or of.generation

        async def look() -> NodeWorkload | None:
            found = await self.desired(node, of.id)
            fits = found and found.spec.generation == wanted and len(found.slots) == slots
            return found if fits else None

        return await eventually(look, what=f"{slots} slots of generation {wanted} on {node}")


@pytest.fixture
async def stage(harness: Harness) -> Stage:
    stage = Stage(harness, await harness.everybody(), await harness.store("scheduler"))
    await harness.answers(WorkloadsAfter, stage.workloads)
    return stage


@pytest.fixture
async def scheduler(stage: Stage) -> Stage:
    """The same, with the scheduler at work."""
    await stage.harness.start("scheduler")
    return stage
