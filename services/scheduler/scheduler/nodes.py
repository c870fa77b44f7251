"""The nodes: who they are, what they have, whether they can be heard.

Invariant: of a node's reports the newest wins, however they arrive; a node changes between online and offline
with one line in the log and one alert, told by whichever scheduler made the change. Called by `app` for
heartbeats and as a loop.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Literal

from contracts.errors import Unavailable
from contracts.events import AlertRaised
from contracts.reports import NodeHeartbeat
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx

from scheduler import usage
from scheduler.departures import Departures
from scheduler.relief import Relief

# A pause between two looks that is longer says that we were away ourselves.
LOOK_SECONDS = 5.0
AWAY = timedelta(seconds=4 * LOOK_SECONDS)

# What falls silent again within this time comes and goes: it is given new work later each time it is back.
UNSTABLE = timedelta(hours=1)
# So many outages are told one by one; then once that there are many.
TOLD_OUTAGES = 3
PRESSED, RELIEVED = 0.9, 0.85
# What an alert is about, where it is none of its resources.
SILENCE, ENGINE = "silence", "engine"


def offered(machine: str) -> dict[str, str]:
    """SQL for what may be promised of a node `n` whose machine has what `machine` says."""
    return {
        "cpu": f"least(n.limit_cpu_millis, ({machine}.machine_cpu_millis * n.oversubscribe_cpu)::bigint)",
        "memory": f"least(n.limit_memory_mb, ({machine}.machine_memory_mb * n.oversubscribe_memory)::bigint)",
        "disk": f"least(n.limit_disk_mb, {machine}.machine_disk_mb)",
    }


# `before` is joined into what is inserted so that rows are locked in one order before any is written.
_HEARD = """
with reported as (
    select r.name, coalesce(k.region, r.region) as region, r.boot, r.sequence, r.reported_at, r.engine,
        r.agent, r.instances, r.cpu_millis, r.memory_mb, r.disk_mb,
        r.used_cpu_millis, r.used_memory_mb, r.used_disk_mb, r.load, r.engine_away, r.architecture,
        coalesce(string_to_array(nullif(r.runtimes, ''), ' '), '{{}}') as runtimes,
        coalesce(k.labels, '{{}}') as labels
    from unnest(
        %s::text[], %s::text[], %s::text[], %s::bigint[], %s::timestamptz[], %s::text[], %s::text[],
        %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
        %s::float8[], %s::boolean[], %s::text[], %s::text[]
    ) as r(
        name, region, boot, sequence, reported_at, engine, agent, instances,
        cpu_millis, memory_mb, disk_mb, used_cpu_millis, used_memory_mb, used_disk_mb, load,
        engine_away, architecture, runtimes
    ) left join node_key k on k.node = r.name
    where k.removed_at is null
), before as materialized (
    select n.name, n.status, n.returned, n.pressed, n.outages, n.engine_away
    from node n join reported r on r.name = n.name
    order by n.name for no key update of n
), written as (
    insert into node as n (
        name, region, boot, sequence, reported_at, engine, agent, instances,
        machine_cpu_millis, machine_memory_mb, machine_disk_mb,
        used_cpu_millis, used_memory_mb, used_disk_mb, load, engine_away, architecture, runtimes, labels,
        status, last_seen_at, cpu_millis, memory_mb, disk_mb, free_cpu_millis, free_memory_mb, free_disk_mb
    )
    select r.*, 'online', %s, r.cpu_millis, r.memory_mb, r.disk_mb,
        greatest(0, r.cpu_millis), greatest(0, r.memory_mb), greatest(0, r.disk_mb)
    from reported r left join before on before.name = r.name order by r.name
    on conflict (name) do update set
        region = excluded.region, boot = excluded.boot, sequence = excluded.sequence,
        reported_at = excluded.reported_at, last_seen_at = excluded.last_seen_at, status = 'online',
        engine = excluded.engine, agent = excluded.agent, instances = excluded.instances,
        load = excluded.load, engine_away = excluded.engine_away,
        architecture = excluded.architecture, runtimes = excluded.runtimes,
        machine_cpu_millis = excluded.machine_cpu_millis, machine_memory_mb = excluded.machine_memory_mb,
        machine_disk_mb = excluded.machine_disk_mb,
        used_cpu_millis = excluded.used_cpu_millis, used_memory_mb = excluded.used_memory_mb,
        used_disk_mb = excluded.used_disk_mb,
        cpu_millis = {cpu}, memory_mb = {memory}, disk_mb = {disk},
        free_cpu_millis = greatest(0, {cpu} - n.reserved_cpu_millis),
        free_memory_mb = greatest(0, {memory} - n.reserved_memory_mb),
        free_disk_mb = greatest(0, {disk} - n.reserved_disk_mb),
        trusted_at = case when n.status = 'offline' and n.outages > 1
            then excluded.last_seen_at + least(600, 30 * power(2, least(n.outages, 10) - 1))
                * interval '1 second'
            else n.trusted_at end,
        returned = n.returned + case
            when n.status = 'offline' or n.region <> excluded.region or n.cpu_millis < {cpu}
                or n.memory_mb < {memory} or n.disk_mb < {disk}
                or (n.engine_away and not excluded.engine_away)
            then 1 else 0 end
    where (n.boot = excluded.boot and n.sequence < excluded.sequence)
        -- A later start of the agent; or one whose clock was set back, once the old one is silent.
        or (n.boot <> excluded.boot and (n.reported_at < excluded.reported_at or n.status = 'offline'))
    returning n.name, n.region, n.returned
)
select written.name, written.region, before.status, before.returned is distinct from written.returned,
    coalesce(before.pressed, '{{}}'), coalesce(before.outages, 0), coalesce(before.engine_away, false)
from written left join before on before.name = written.name
""".format(**offered("excluded"))

_SILENT = """
update node set status = 'offline', evacuate = true, trusted_at = null, outage_at = %(now)s,
    outages = case when outage_at > %(unstable)s then outages + 1 else 1 end
where name in (
    select name from node where status = 'online' and last_seen_at < %(silent)s
    order by name for no key update
) returning name, region, last_seen_at, outages
"""

_TRUST = """
update node set trusted_at = null, returned = returned + 1 where name in (
    select name from node where trusted_at <= %s order by name for no key update
)
"""

_STAYED = """
update node set outages = 0 where name in (
    select name from node where status = 'online' and outages >= %s and outage_at <= %s
    order by name for no key update
) returning name, region
"""

# One of each node every few minutes, whichever scheduler takes it; the older ones are thinned.
_SAMPLE = """
insert into node_sample
select name, to_timestamp(floor(extract(epoch from %(now)s::timestamptz) / %(every)s) * %(every)s),
    used_cpu_millis, used_memory_mb, used_disk_mb, reserved_cpu_millis, reserved_memory_mb, reserved_disk_mb,
    load, instances
from node where status = 'online' on conflict do nothing
"""
SAMPLE_SECONDS = 300
_THIN = """
delete from node_sample where at < %(now)s - interval '2 days'
    and (at < %(now)s - interval '30 days' or extract(epoch from at)::bigint %% 3600 <> 0)
"""

_PRESSED = """
update node n set pressed = string_to_array(t.pressed, ' ')
from unnest(%s::text[], %s::text[]) as t(name, pressed) where n.name = t.name
"""


class Nodes:
    def __init__(
        self,
        runtime: Runtime,
        departures: Departures,
        relief: Relief,
        offline_seconds: float,
        place: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._departures = departures
        self._relief = relief
        self._patience = timedelta(seconds=offline_seconds)
        self._place = place
        self._listening_since: datetime | None = None
        self._looked_at: datetime | None = None

    async def heard(self, reports: Sequence[NodeHeartbeat]) -> None:
        try:
            async with self._runtime.store.transaction(PLATFORM) as tx:
                await self._record(newest(reports), tx)
            # In a transaction of its own: workloads are locked before nodes.
            await self._relief.reported(reports)
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
                    r.agent,
                    len(r.instances),
                    r.capacity.cpu_millis,
                    r.capacity.memory_mb,
                    r.capacity.disk_mb,
                    r.used.cpu_millis,
                    r.used.memory_mb,
                    r.used.disk_mb,
                    r.used.load,
                    r.engine_away,
                    r.architecture,
                    " ".join(r.runtimes),
                )
                for r in reports
            ),
            strict=True,
        )
        cursor = await connection.execute(_HEARD, (*map(list, columns), now), prepare=True)
        by_name = {r.node: r for r in reports}
        recorded, pressed = [], []
        for name, region, before, returned, was_pressed, outages, was_away in await cursor.fetchall():
            recorded.append(by_name[name])
            if returned:
                tx.after_commit(self._place)
            if before is None:
                self._runtime.log.info("node joined", node=name, region=region)
            elif before == "offline":
                self._runtime.log.info("node online again", node=name, region=region)
                if outages < TOLD_OUTAGES:
                    title = f"Node {name} is online again"
                    tx.publish(about_node(name, region, SILENCE, "warning", title, over=True))
            if by_name[name].engine_away != was_away:
                tx.publish(about_engine(name, region, over=was_away))
            is_pressed = pressed_in(by_name[name], was_pressed)
            if is_pressed != was_pressed:
                pressed.append((name, " ".join(is_pressed)))
                for alert in pressure(by_name[name], region, was_pressed, is_pressed):
                    tx.publish(alert)
        if pressed:
            await connection.execute(_PRESSED, tuple(map(list, zip(*pressed, strict=True))), prepare=True)
        await usage.record(connection, recorded, now)
        await self._departures.reported(recorded, now, tx)

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
        await self._trust(now)
        if now - self._listening_since >= self._patience:
            await self._mark_silent(now - self._patience)
        self._looked_at = now

    async def _trust(self, now: datetime) -> None:
        """Nodes that came back and stayed; those that stay for long do not come and go any more."""
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            cursor = await connection.execute(_TRUST, (now,), prepare=True)
            if cursor.rowcount:
                tx.after_commit(self._place)
            cursor = await connection.execute(_STAYED, (TOLD_OUTAGES, now - UNSTABLE), prepare=True)
            for name, region in await cursor.fetchall():
                title = f"Node {name} comes and goes no more"
                tx.publish(about_node(name, region, SILENCE, "warning", title, over=True))

    async def sample(self) -> None:
        await self._execute(_SAMPLE, {"now": self._runtime.clock.now(), "every": SAMPLE_SECONDS})

    async def thin(self) -> None:
        await self._execute(_THIN, {"now": self._runtime.clock.now()})

    async def _execute(self, statement: str, parameters: dict[str, object]) -> None:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            await connection.execute(statement, parameters)

    async def _mark_silent(self, before: datetime) -> None:
        now = self._runtime.clock.now()
        times = {"now": now, "unstable": now - UNSTABLE, "silent": before}
        async with self._runtime.store.transaction(PLATFORM) as tx:
            connection = await tx.connection()
            cursor = await connection.execute(_SILENT, times, prepare=True)
            for name, region, seen, outages in await cursor.fetchall():
                tx.after_commit(self._place)
                self._runtime.log.warning("node offline", node=name, region=region, last_seen_at=seen)
                if outages <= TOLD_OUTAGES:
                    word = "is offline" if outages < TOLD_OUTAGES else "comes and goes"
                    tx.publish(about_node(name, region, SILENCE, "critical", f"Node {name} {word}"))


def about_node(
    node: str,
    region: str,
    trouble: str,
    severity: Literal["warning", "critical"],
    title: str,
    *,
    over: bool = False,
    **details: str,
) -> AlertRaised:
    return AlertRaised(
        service="scheduler",
        severity=severity,
        title=title,
        details={"node": node, "region": region, **details},
        about=f"node/{node}/{trouble}",
        over=over,
    )


def about_engine(node: str, region: str, *, over: bool) -> AlertRaised:
    title = f"The container engine of node {node} " + ("answers again" if over else "does not answer")
    return about_node(node, region, ENGINE, "warning" if over else "critical", title, over=over)


def pressure(
    report: NodeHeartbeat, region: str, before: Sequence[str], after: Sequence[str]
) -> Iterator[AlertRaised]:
    node, shares = report.node, shares_of(report)
    for resource in sorted({*before} ^ {*after}):
        share, over = f"{shares.get(resource, 0.0):.0%}", resource not in after
        title = f"Node {node} " + (
            f"has {resource} again ({share})" if over else f"is at {share} of its {resource}"
        )
        yield about_node(node, region, resource, "warning", title, over=over, resource=resource, used=share)


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


def shares_of(report: NodeHeartbeat) -> dict[str, float]:
    """How much of each resource is in use, where it is known."""
    has, used = report.capacity, report.used
    pairs = {
        "CPU": (used.cpu_millis, has.cpu_millis),
        "memory": (used.memory_mb, has.memory_mb),
        "disk": (used.disk_mb, has.disk_mb),
    }
    return {name: used / has for name, (used, has) in pairs.items() if has > 0}


def pressed_in(report: NodeHeartbeat, before: Sequence[str]) -> list[str]:
    """The resources of which so much is in use that somebody should know. One that is told of stays until a
    little less than that is in use: around the limit nobody is told twice. A processor is busy for moments
    all the time: it is told of when work has waited for it for a minute, too, and until both have eased."""
    shares = shares_of(report)
    if "CPU" in shares:
        waiting = 1000 * report.used.load / report.capacity.cpu_millis
        shares["CPU"] = max(shares["CPU"], waiting) if "CPU" in before else min(shares["CPU"], waiting)
    return [name for name, share in shares.items() if share >= (RELIEVED if name in before else PRESSED)]
