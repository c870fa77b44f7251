"""Workloads that are to be placed: taken under lock, a batch at a time, by one scheduler each."""

from dataclasses import dataclass
from typing import Any

from contracts.workload import WorkloadSpec
from psycopg import AsyncConnection

BATCH = 1000

_DUE = """
select id from workload where due_at <= now() and not moving and (%(only)s::text is null or id = %(only)s)
order by due_at limit %(limit)s for no key update skip locked
"""

# Without anything blocked no node is read.
_WOKEN = """
select w.id from workload w join (
    select n.region, sum(n.returned) as returned from node n
    where n.region in (select region from workload where blocked is not null) group by n.region
) r on r.region = w.region
where w.blocked is not null and w.due_at is null and not w.moving and w.blocked_returned <> r.returned
    and (%(only)s::text is null or w.id = %(only)s)
limit %(limit)s for no key update of w skip locked
"""

# In a statement of its own, after the lock: what is read is what was locked.
_TAKEN = """
select id, generation, revision, spec::text, in_force ->> 'generation', blocked, told_generation, bound
from workload where id = any(%s)
"""


@dataclass(frozen=True, slots=True)
class Due:
    spec: WorkloadSpec
    generation: int
    revision: int
    generation_in_force: int | None
    blocked: dict[str, str] | None
    told_generation: int
    bound: str | None


async def chosen(connection: AsyncConnection[Any], only: str | None) -> list[str]:
    found: list[str] = []
    for statement in (_DUE, _WOKEN):
        limits = {"only": only, "limit": BATCH - len(found)}
        cursor = await connection.execute(statement, limits, prepare=False)
        found += [id for (id,) in await cursor.fetchall()]
        if len(found) == BATCH:
            break
    return found


async def take(connection: AsyncConnection[Any], only: str | None) -> dict[str, Due]:
    taken = await chosen(connection, only)
    if not taken:
        return {}
    # A plan made for an array of this size at tables of this size: no prepared one fits all.
    cursor = await connection.execute(_TAKEN, (taken,), prepare=False)
    return {
        id: Due(
            WorkloadSpec.model_validate_json(spec),
            generation,
            revision,
            None if in_force is None else int(in_force),
            blocked,
            told,
            bound,
        )
        for id, generation, revision, spec, in_force, blocked, told, bound in await cursor.fetchall()
    }
