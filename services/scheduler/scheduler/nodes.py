"""The nodes: who they are, what they have, whether they can be heard.

Invariant: of a node's reports the newest wins, however they arrive; a node changes between online and offline
with one line in the log and one alert, told by whichever scheduler made the change. Called by `app` for
heartbeats and as a loop.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta

from contracts.errors import Unavailable
from contracts.events import AlertRaised
from contracts.reports import NodeHeartbeat
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

from scheduler.departures import Departures

# A pause between two looks that is longer says that we were away ourselves.
LOOK_SECONDS = 5.0
AWAY = timedelta(seconds=4 * LOOK_SECONDS)

# `before` is joined into what is inserted so that rows are locked in one order before any is written.
_HEARD = """
with reported as (
    select * from unnest(
        %s::text[], %s::text[], %s::text[], %s::bigint[], %s::timestamptz[], %s::text[], %s::bigint[],
        %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::float8[]
    ) as r(
        name, region, boot, sequence, reported_at, engine, instances,
        cpu_millis, memory_mb, disk_mb, used_cpu_millis, used_memory_mb, used_disk_mb, load
    )
), before as materialized (
    select n.name, n.status, n.returned from node n join reported r on r.name = n.name
    order by n.name for no key update of n
), written as (
    insert into node as n (
        name, region, boot, sequence, reported_at, engine, instances,
        cpu_millis, memory_mb, disk_mb, used_cpu_millis, used_memory_mb, used_disk_mb, load,
        status, last_seen_at, free_cpu_millis, free_memory_mb, free_disk_mb
    )
    select r.*, 'online', %s, greatest(0, r.cpu_millis), greatest(0, r.memory_mb), greatest(0, r.disk_mb)
    from reported r left join before on before.name = r.name order by r.name
    on conflict (name) do update set
        region = excluded.region, boot = excluded.boot, sequence = excluded.sequence,
        reported_at = excluded.reported_at, last_seen_at = excluded.last_seen_at, status = 'online',
        engine = excluded.engine, instances = excluded.instances, load = excluded.load,
        cpu_millis = excluded.cpu_millis, memory_mb = excluded.memory_mb, disk_mb = excluded.disk_mb,
        used_cpu_millis = excluded.used_cpu_millis, used_memory_mb = excluded.used_memory_mb,
        used_disk_mb = excluded.used_disk_mb,
        free_cpu_millis = greatest(0, excluded.cpu_millis - n.reserved_cpu_millis),
        free_memory_mb = greatest(0, excluded.memory_mb - n.reserved_memory_mb),
        free_disk_mb = greatest(0, excluded.disk_mb - n.reserved_disk_mb),
        returned = n.returned + case
            when n.status = 'offline' or n.region <> excluded.region or n.cpu_millis < excluded.cpu_millis
                or n.memory_mb < excluded.memory_mb or n.disk_mb < excluded.disk_mb
            then 1 else 0 end
    where (n.boot = excluded.boot and n.sequence < excluded.sequence)
        -- A later start of the agent; or one whose clock was set back, once the old one is silent.
        or (n.boot <> excluded.boot and (n.reported_at < excluded.reported_at or n.status = 'offline'))
    returning n.name, n.region, n.returned
)
select written.name, written.region, before.status, before.returned is distinct from written.returned
from written left join before on before.name = written.name
"""

_SILENT = """
update node set status = 'offline' where name in (
    select name from node where status = 'online' and last_seen_at < %s order by name for no key update
) returning name, region, last_seen_at
"""


class Nodes:
    def __init__(
        self, runtime: Runtime, departures: Departures, offline_seconds: float, place: Callable[[], None]
    ) -> None:
        self._runtime = runtime
        self._departures = departures
        self._patience = timedelta(seconds=offline_seconds)
        self._place = place
        self._listening_since: datetime | None = None
        self._looked_at: datetime | None = None

    async def heard(self, reports: Sequence[NodeHeartbeat]) -> None:
        try:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await self._record(newest(reports), tx)
        except Unavailable:
            raise
        except Exception as error:
            # A report the database refuses must not silence the other nodes.
            if len(reports) == 1:
                self._runtime.log.error("heartbeat refused", node=reports[0].node, error=str(error))
                return
            for report in reports:
                await self.heard([report])

    async def _record(self, reports: Sequence[NodeHeartbeat], tx: Tx) -> None:
        now = self._runtime.clock.now()
        connection = await tx.connection()
        columns = zip(
            *(
                (
                    r.node,
                    r.region,
                    r.boot,
                    r.sequence,
                    r.at,
                    r.engine,
                    len(r.instances),
                    r.capacity.cpu_millis,
                    r.capacity.memory_mb,
                    r.capacity.disk_mb,
                    r.used.cpu_millis,
                    r.used.memory_mb,
                    r.used.disk_mb,
                    r.used.load,
                )
                for r in reports
            ),
            strict=True,
        )
        cursor = await connection.execute(_HEARD, (*map(list, columns), now), prepare=True)
        recorded = set()
        for name, region, before, returned in await cursor.fetchall():
            recorded.add(name)
            if returned:
                tx.after_commit(self._place)
            if before is None:
                self._runtime.log.info("node joined", node=name, region=region)
            elif before == "offline":
                self._runtime.log.info("node online again", node=name, region=region)
                tx.publish(self._alert("warning", f"Node {name} is online again", name, region))
        await self._departures.reported([r for r in reports if r.node in recorded], now, tx)

    async def look(self) -> None:
        """Marks the silent nodes offline. Only who has listened for long enough himself may call it silence:
        not after a start, a lost connection or a pause of this process or its database."""
        now = self._runtime.clock.now()
        if not self._runtime.bus.connected:
            self._listening_since = None
            return
        away = self._looked_at is None or now - self._looked_at > AWAY
        if self._listening_since is None or away:
            self._listening_since = now
        if now - self._listening_since >= self._patience:
            await self._mark_silent(now - self._patience)
        self._looked_at = now

    async def _mark_silent(self, before: datetime) -> None:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            cursor = await connection.execute(_SILENT, (before,), prepare=True)
            for name, region, seen in await cursor.fetchall():
                self._runtime.log.warning("node offline", node=name, region=region, last_seen_at=seen)
                tx.publish(self._alert("critical", f"Node {name} is offline", name, region))

    def _alert(self, severity: str, title: str, node: str, region: str) -> AlertRaised:
        return AlertRaised.model_validate(
            {
                "service": self._runtime.name,
                "severity": severity,
                "title": title,
                "details": {"node": node, "region": region},
            }
        )


def newest(reports: Iterable[NodeHeartbeat]) -> list[NodeHeartbeat]:
    """One report of each node."""
    found: dict[str, NodeHeartbeat] = {}
    for report in reports:
        known = found.get(report.node)
        if (
            known is None
            or (known.boot == report.boot and known.sequence < report.sequence)
            or (known.boot != report.boot and known.at < report.at)
        ):
            found[report.node] = report
    return list(found.values())
