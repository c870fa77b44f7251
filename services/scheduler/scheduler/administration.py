"""What an administrator decides about nodes: what they may take, when they are emptied, when they go.

Invariant: a decision holds from its commit on, for every scheduler: it stands in the node's row, which is
locked wherever something is promised of it. Answers queries of the gateway.
"""

from collections.abc import Awaitable, Callable, Sequence

from contracts import events
from contracts.errors import Conflict, NotFound, Unavailable
from contracts.queries import NodeChanged, NodeInfo, NodeRemoved, Removed
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx
from sqlalchemy import Select, delete, func, select, text, update

from scheduler import queries
from scheduler.door import Door
from scheduler.nodes import ENGINE, SILENCE, TOLD_OUTAGES, about_node, offered
from scheduler.peers import Peers
from scheduler.tables import (
    JobRow,
    NodeKeyRow,
    NodeRow,
    PlacementRow,
    ProjectionRow,
    TransferRow,
    WorkloadRow,
)

# What is promised already stays promised, also where less may be promised from now on.
_OFFER = text(
    """
    update node n set
        cpu_millis = {cpu}, memory_mb = {memory}, disk_mb = {disk},
        free_cpu_millis = greatest(0, {cpu} - n.reserved_cpu_millis),
        free_memory_mb = greatest(0, {memory} - n.reserved_memory_mb),
        free_disk_mb = greatest(0, {disk} - n.reserved_disk_mb),
        returned = n.returned + 1
    where n.name = :name
    """.format(**offered("n"))
)

# What could not be copied while it ran, or to where it was to go, may well go now.
_AFRESH = text(
    """
    update workload set copy_after = null, copy_failures = 0 where id in (
        select id from workload where bound = :name and copy_after is not null order by id for no key update
    )
    """
)


class Administration:
    def __init__(
        self,
        runtime: Runtime,
        door: Door,
        peers: Peers,
        place: Callable[[], None],
        lose: Callable[[Tx, Sequence[JobRow]], Awaitable[None]],
    ) -> None:
        """`lose`: jobs under lock, whose node is gone."""
        self._runtime = runtime
        self._door = door
        self._peers = peers
        self._place = place
        self._lose = lose

    async def change(self, order: NodeChanged) -> NodeInfo:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            if order.draining:
                await tx.execute(_AFRESH, {"name": order.node})
            row = await tx.get(NodeRow, order.node, lock=True)
            if row is None:
                raise _unknown(order.node)
            for name in ("disabled", "labels", "oversubscribe_cpu", "oversubscribe_memory", "reserve"):
                value = getattr(order, name)
                if value is not None:
                    setattr(row, name, value)
            if order.limits is not None:
                row.limit_cpu_millis = order.limits.cpu_millis
                row.limit_memory_mb = order.limits.memory_mb
                row.limit_disk_mb = order.limits.disk_mb
            if order.draining is not None and order.draining != row.draining:
                row.draining, row.drain_total, row.evacuate = order.draining, None, order.draining
                if order.draining:
                    row.drain_total = await tx.one(
                        select(func.count()).select_from(PlacementRow).where(PlacementRow.node == row.name)
                    )
            await tx.flush()
            await tx.execute(_OFFER, {"name": row.name})
            tx.after_commit(self._place)
        self._runtime.log.info("node changed", **order.model_dump(exclude_none=True))
        return await queries.one_node(self._runtime, order.node)

    async def remove(self, order: NodeRemoved) -> Removed:
        node = order.node
        async with self._runtime.store.transaction(PLATFORM) as tx:
            jobs = await _locked_jobs(tx, node)
            placed = await _locked_workloads(tx, node)
            key = await tx.get(NodeKeyRow, node, lock=True)
            row = await tx.get(NodeRow, node, lock=True)
            if row is None and (key is None or key.removed_at is not None):
                raise _unknown(node)
            held = await tx.scalars(
                select(WorkloadRow.id).where(
                    WorkloadRow.bound == node, WorkloadRow.in_force["state"].astext != "deleted"
                )
            )
            coming = await tx.scalars(select(TransferRow.workload).where(TransferRow.target == node))
            obstacles = (
                (
                    {"workloads": len(placed)},
                    f"{node} still has {len(placed)} workloads; drain it first, or remove it by force: they "
                    "start elsewhere, and what is only on its disk is lost",
                ),
                (
                    {"workloads": len(held)},
                    f"{node} still has the volumes of {len(held)} workloads; drain it first, or remove it by "
                    "force: what has a copy elsewhere goes on from there, and the rest is lost",
                ),
                (
                    {"workloads": len(coming)},
                    f"the data of {len(coming)} workloads is on its way to {node}; drain it first, or "
                    "remove it by force: they go on where they were",
                ),
                (
                    {"jobs": len(jobs)},
                    f"{len(jobs)} jobs are at work on {node}; disable it and wait for their end, or remove "
                    "it by force: they count as lost",
                ),
            )
            for count, words in obstacles:
                if any(count.values()) and not order.force:
                    raise Conflict(words, node=node, **count)
            if key is None and row is not None and row.status == "online":
                raise Conflict(
                    f"{node} did not join with a token, so it cannot be cut off: stop its agent, take it out "
                    "of the installation's settings, then remove it",
                    node=node,
                )
            begun = await tx.scalars(_jobs_on(node).where(JobRow.id.not_in([job.id for job in jobs])))
            given = await tx.scalars(_placed_on(node).where(PlacementRow.workload.not_in(placed)))
            if begun or given:
                raise Unavailable(f"{node} was given work this very moment; try again")
            now = self._runtime.clock.now()
            if key is not None:
                key.removed_at = now
            # A machine that joins under its name has no room of theirs, and does not begin them again.
            await self._lose(tx, jobs)
            await tx.execute(delete(PlacementRow).where(PlacementRow.node == node))
            told = await tx.scalars(select(ProjectionRow.workload).where(ProjectionRow.node == node))
            await tx.execute(delete(ProjectionRow).where(ProjectionRow.node == node))
            if row is not None:
                troubles = [
                    *row.pressed,
                    *([SILENCE] if row.status == "offline" or row.outages >= TOLD_OUTAGES else []),
                    *([ENGINE] if row.engine_away else []),
                ]
                for trouble in troubles:
                    title = f"Node {node} is removed"
                    tx.publish(about_node(node, row.region, trouble, "warning", title, over=True))
                # One that was never heard has run nothing.
                tx.publish(events.NodeRemoved(at=now, node=node, last_seen_at=row.last_seen_at))
            await tx.execute(delete(NodeRow).where(NodeRow.name == node))
            await tx.execute(update(WorkloadRow).where(WorkloadRow.id.in_(placed)).values(due_at=func.now()))
            tx.after_commit(self._place)
        self._runtime.log.info("node removed", node=node, force=order.force, workloads=len(placed))
        connections = await self._cut(node)
        await self._clear(node, told)
        return Removed(connections=connections)

    async def _cut(self, node: str) -> int:
        try:
            return await self._door.cut(node)
        except Unavailable as error:
            # It is removed; the door looks for it again.
            self._runtime.log.warning("a removed node is not cut off yet", node=node, error=error.message)
            return 0

    async def _clear(self, node: str, workloads: list[str]) -> None:
        """Nobody is sent to its instances any more, and what it was told is told to nobody."""
        desired, endpoints = self._runtime.bus.bucket("desired"), self._runtime.bus.bucket("endpoints")
        try:
            await self._peers.forget(node)
            for key in await desired.keys(f"{node}."):
                await desired.delete(key)
            for workload in workloads:
                key = f"{workload}.{node}"
                if await endpoints.get(key) is not None:
                    await endpoints.delete(key)
        except (Conflict, Unavailable) as error:
            # A machine that joins under its name is told by the survey that it has nothing to run.
            self._runtime.log.warning("words to a removed node are left", node=node, error=error.message)


async def _locked_jobs(tx: Tx, node: str) -> list[JobRow]:
    """Jobs are locked before their workloads."""
    return await tx.scalars(_jobs_on(node).order_by(JobRow.id).with_for_update())


def _jobs_on(node: str) -> Select[JobRow]:
    return select(JobRow).where(JobRow.node == node, JobRow.state == "placed")


async def _locked_workloads(tx: Tx, node: str) -> list[str]:
    """Workloads are locked before nodes, here as everywhere."""
    return await tx.scalars(
        select(WorkloadRow.id)
        .where(WorkloadRow.id.in_(_placed_on(node)))
        .order_by(WorkloadRow.id)
        .with_for_update(key_share=True)
    )


def _placed_on(node: str) -> Select[str]:
    return select(PlacementRow.workload).where(PlacementRow.node == node)


def _unknown(node: str) -> NotFound:
    return NotFound(f"there is no node {node}; GET /api/admin/paas/nodes lists them", node=node)
