"""Nodes with real volumes on a real NATS, each with its own rights; the test orders what the scheduler
would."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from contracts.copies import CopyOrder, Mode
from contracts.ids import new_id
from contracts.reports import CopiesHeld, CopyState
from contracts.workload import NodeWorkload, Volume, WorkloadSpec
from node_agent.app import create
from node_agent.commands import run
from node_agent.routes_file import Served
from node_agent.settings import NodeAgentSettings
from runtime.bus import Bus
from runtime.host import Host
from runtime.tasks import end

from tests.harness import Harness, eventually
from tests.node_agent.conftest import slots
from tests.ports.fake_engine import FakeEngine

_TASKS = ("node-agent.", "workload ", "departure ", "watch ", "pull ", "job ", "copy ")


class NoProxy:
    """Nobody is routed here."""

    async def open(self) -> None: ...

    async def publish(self, served: Served) -> None: ...

    def published(self) -> set[str]:
        return set()

    async def withdraw(self, workload: str) -> None: ...

    async def metrics(self) -> bytes:
        return b""


def volume(size_mb: int = 16, **changes: object) -> Volume:
    return Volume.model_validate(
        {"id": new_id("vol"), "name": "data", "path": "/data", "size_mb": size_mb, **changes}
    )


@dataclass
class Fleet:
    harness: Harness
    bus: Bus
    folder: Path
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    states: dict[tuple[str, str], CopyState] = field(default_factory=dict)
    held: dict[str, CopiesHeld] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def state(self, node: str) -> Path:
        return self.folder / node

    def volumes(self, node: str) -> Path:
        return self.state(node) / "nodes" / node / "volumes"

    def data(self, node: str, of: Volume) -> Path:
        return self.volumes(node) / "mounts" / of.id / "data"

    def aside(self, node: str) -> list[Path]:
        folder = self.volumes(node) / "aside"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    async def start(self, *names: str) -> None:
        for name in names:
            engine = self.engines.setdefault(name, FakeEngine())
            engine.images["app:1"] = ""
            settings = NodeAgentSettings(
                **{"drain_seconds": 0.5, "reconcile_seconds": 60.0, "heartbeat_seconds": 1, **self.settings}
            )
            await self.harness.start(
                "node-agent",
                lambda runtime, engine=engine, settings=settings: create(  # type: ignore[misc]
                    runtime, engine, NoProxy(), settings
                ),
                alias=name,
                node=name,
                state=self.state(name),
            )

    async def crash(self, name: str) -> None:
        """SIGKILL as far as tasks can tell; no other agent may be at work meanwhile."""
        host: Host = self.harness.hosts.pop(name)
        stray = [task for task in asyncio.all_tasks() if task.get_name().startswith(_TASKS)]
        await end(stray, patience=0.2)
        # The kernel closes what a dead process has listened at.
        node: Any = getattr(host.service.on_stop, "__self__", None)
        await node._site.waker.close()
        await host.runtime.bus.close()

    async def want(self, node: str, of: WorkloadSpec, revision: int, count: int = 1, **more: Any) -> None:
        told = NodeWorkload(node=node, revision=revision, spec=of, slots=slots(count), **more)
        await self.bus.bucket("desired").put(f"{node}.{of.id}", told.model_dump_json().encode())

    async def order(
        self, of: WorkloadSpec, giver: str, taker: str, mode: Mode = "frozen", **wrong: Any
    ) -> CopyOrder:
        """`wrong`: what the taker is told otherwise."""
        order = CopyOrder(
            id=new_id("cpy"),
            workload=of.id,
            role="give",
            peer=taker,
            secret=secrets.token_urlsafe(24),
            mode=mode,
        )
        taken = order.model_copy(update={"role": "take", "peer": giver, **wrong})
        for node, value in ((giver, order), (taker, taken)):
            await self.bus.bucket("copies").put(f"{node}.{of.id}", value.model_dump_json().encode())
        return taken

    async def forget(self, of: WorkloadSpec, *nodes: str) -> None:
        for node in nodes:
            await self.bus.bucket("copies").delete(f"{node}.{of.id}")

    async def complete(self, order: CopyOrder, taker: str, seconds: float = 90) -> CopyState:
        async def look() -> CopyState | None:
            found = self.states.get((taker, order.id))
            return found if found is not None and found.phase == "complete" else None

        return await eventually(look, seconds=seconds, what="the copy")

    async def copied(self, of: WorkloadSpec, giver: str, taker: str, mode: Mode = "frozen") -> CopyState:
        order = await self.order(of, giver, taker, mode)
        done = await self.complete(order, taker)
        await self.forget(of, giver, taker)
        return done

    async def exists(self, path: Path, seconds: float = 30) -> Path:
        async def look() -> bool:
            return await asyncio.to_thread(path.exists)

        await eventually(look, seconds=seconds, what=str(path))
        return path

    async def gone(self, path: Path, seconds: float = 30) -> None:
        async def look() -> bool:
            return not await asyncio.to_thread(path.exists)

        await eventually(look, seconds=seconds, what=f"the end of {path}")


def mounts_below(folder: Path) -> list[Path]:
    return list(folder.glob("*/nodes/*/volumes/mounts/*"))


@pytest.fixture
async def fleet(harness: Harness, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with opened(harness, tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(harness: Harness, folder: Path) -> AsyncIterator[Fleet]:
    made = Fleet(harness, await harness.everybody(), folder)

    async def hear(reports: list[CopyState]) -> None:
        for report in reports:
            made.states[report.node, report.copy_id] = report

    async def hear_held(reports: list[CopiesHeld]) -> None:
        made.held |= {report.node: report for report in reports}

    listener = await harness.everybody()
    listener.listen(CopyState, hear, "tests")
    listener.listen(CopiesHeld, hear_held, "tests")
    await listener.start_broker()
    yield made
    for name in [name for name in harness.hosts if name in made.engines]:
        await harness.stop(name)
    for engine in made.engines.values():
        await engine.end()
    for mount in mounts_below(folder):
        await asyncio.to_thread(run, "umount", str(mount), good=range(256))
