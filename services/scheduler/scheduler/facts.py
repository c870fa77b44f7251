"""A workload under lock: its specification in force, where its data is, its copies, and what is on its
way."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from contracts.workload import WorkloadSpec
from psycopg import AsyncConnection

from scheduler.fleet import NOTHING, Room
from scheduler.homing import Copy
from scheduler.reconcile import Demand

_FACTS = """
select w.id, w.organization, w.generation, w.bound, w.home, w.proven, w.moving, w.copy_failures,
    w.in_force::text, array(select row_to_json(c) from copy c where c.workload = w.id order by c.node),
    (select row_to_json(t) from transfer t where t.workload = w.id)
from workload w where w.id = %s
"""


@dataclass(frozen=True, slots=True)
class Facts:
    """A workload under lock, with its copies and what is on its way."""

    id: str
    organization: str
    generation: int
    bound: str | None
    moving: bool
    # Copies given up in a row.
    copy_failures: int
    spec: WorkloadSpec
    copies: tuple[Copy, ...]
    held: Mapping[str, Mapping[str, Any]]
    transfer: Mapping[str, Any] | None

    @property
    def demand(self) -> Demand:
        return Demand.of(self.spec, self.bound)

    def given(self, node: str) -> Room:
        """Reserved there for what is to become its data, and for the instances that are to follow it."""
        room, held = reserved_by(self.transfer, node), self.held.get(node)
        return room if held is None else room._replace(disk_mb=room.disk_mb + held["disk_mb"])


async def facts_of(connection: AsyncConnection[Any], workload: str) -> Facts | None:
    """Locked; none: it has not been placed yet, or somebody else is at it."""
    lock = "select id from workload where id = %s and in_force is not null for no key update skip locked"
    if await (await connection.execute(lock, (workload,), prepare=True)).fetchone() is None:
        return None
    row = await (await connection.execute(_FACTS, (workload,), prepare=True)).fetchone()
    assert row is not None, "it is locked"
    id, organization, generation, bound, _, _, moving, failures, spec, copies, transfer = row
    return Facts(
        id,
        organization,
        generation,
        bound,
        moving,
        failures,
        WorkloadSpec.model_validate_json(spec),
        tuple(
            Copy(
                c["node"],
                None if c["taken_at"] is None else datetime.fromisoformat(c["taken_at"]),
                frozenset(c["volumes"]),
                c["dropping"],
                c["missing"],
            )
            for c in copies
        ),
        {c["node"]: c for c in copies},
        transfer,
    )


def reserved_by(transfer: Mapping[str, Any] | None, node: str) -> Room:
    if transfer is None or transfer["target"] != node:
        return NOTHING
    return Room(transfer["cpu_millis"], transfer["memory_mb"], transfer["disk_mb"])


async def wait(
    connection: AsyncConnection[Any], workload: str, until: datetime | None, *, failures: int | None = None
) -> None:
    """No copy of it is begun before. `failures`: how many were given up in a row by now."""
    await connection.execute(
        "update workload set copy_after = %s, copy_failures = coalesce(%s, copy_failures) where id = %s",
        (until, failures, workload),
        prepare=True,
    )
