"""How many requests each workload got, summed over the ingresses of all nodes: a row a workload and node.

Invariant: what a node says is cumulative since its ingress began, so of the same report twice, of a late one
and of a lost one nothing remains. Called by `app` for `node.traffic`.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from contracts.errors import Unavailable
from contracts.queries import Traffic
from contracts.reports import NodeTraffic
from runtime.runtime import Runtime
from runtime.store import PLATFORM

# Said twice a minute, also that there were none for a while; what is older says nothing about now.
_FRESH = timedelta(seconds=100)
_FORGET = timedelta(days=30)

# One of an earlier start that comes so late is none: the clock was set back.
_LATE = "10 minutes"

# Counters of another start, or one that has become smaller, began anew: all of it has come since.
_SINCE = (
    "(excluded.{0} - case when known.boot = excluded.boot and known.requests <= excluded.requests"
    " then known.{0} else 0 end)"
)
_RECORD = """
insert into traffic as known (
    workload, node, boot, at, requests, failed, slow, seconds,
    all_requests, all_failed, all_slow, all_seconds, late_requests, late_seconds, late_span
)
select said.*, requests, failed, slow, seconds, requests, seconds, 0
from unnest(
    %s::text[], %s::text[], %s::text[], %s::timestamptz[], %s::bigint[], %s::bigint[], %s::bigint[],
    %s::float8[]
) as said(workload, node, boot, at, requests, failed, slow, seconds)
where exists (select from workload w where w.id = said.workload)
order by workload
on conflict (workload, node) do update set
    boot = excluded.boot, at = excluded.at, requests = excluded.requests, failed = excluded.failed,
    slow = excluded.slow, seconds = excluded.seconds,
    all_requests = known.all_requests + {requests}, all_failed = known.all_failed + {failed},
    all_slow = known.all_slow + {slow}, all_seconds = known.all_seconds + {seconds},
    late_requests = {requests}, late_seconds = {seconds},
    late_span = greatest(0, extract(epoch from excluded.at - known.at))
where known.at < excluded.at or (known.boot <> excluded.boot and excluded.at < known.at - interval '{late}')
""".format(late=_LATE, **{name: _SINCE.format(name) for name in ("requests", "failed", "slow", "seconds")})

_GONE = """
delete from traffic t using workload w
where w.id = t.workload and w.in_force ->> 'state' = 'deleted' and t.at < %s
"""

_OF = """
select coalesce(sum(all_requests), 0)::bigint, coalesce(sum(all_failed), 0)::bigint,
    coalesce(sum(all_slow), 0)::bigint, coalesce(sum(all_seconds), 0)::float8,
    coalesce(sum(late_requests / nullif(late_span, 0)) filter (where at > %s), 0)::float8,
    sum(late_seconds) filter (where at > %s) / nullif(sum(late_requests) filter (where at > %s), 0)
from traffic where workload = %s
"""


async def heard(runtime: Runtime, reports: Sequence[NodeTraffic]) -> None:
    now = runtime.clock.now()
    for report in reports:
        try:
            async with runtime.store.transaction(PLATFORM) as tx:
                await (await tx.connection()).execute(_RECORD, _columns(report, now), prepare=True)
        except Unavailable:
            raise
        except Exception as error:
            # One that the database refuses must not silence the other nodes.
            runtime.log.error("a report of requests is refused", node=report.node, error=str(error))


def _columns(report: NodeTraffic, now: datetime) -> tuple[list[object], ...]:
    counts = report.counts
    return (
        [one.workload for one in counts],
        [report.node] * len(counts),
        [report.boot] * len(counts),
        # A clock that is ahead would keep out all that is said once it is right again.
        [min(report.at, now)] * len(counts),
        [one.requests for one in counts],
        [one.failed for one in counts],
        [one.slow for one in counts],
        [one.seconds for one in counts],
    )


async def forget(runtime: Runtime) -> None:
    """Of workloads that were deleted, and that nobody has asked for in a while."""
    async with runtime.store.transaction(PLATFORM) as tx:
        await (await tx.connection()).execute(_GONE, (runtime.clock.now() - _FORGET,))


async def of(runtime: Runtime, workload: str) -> Traffic:
    since = runtime.clock.now() - _FRESH
    [(requests, failed, slow, seconds, rate, mean)] = await runtime.store.read(
        _OF, (since, since, since, workload)
    )
    return Traffic(
        requests=requests,
        failed=failed,
        slow=slow,
        seconds=seconds,
        per_second=rate,
        mean_ms=None if mean is None else 1000 * mean,
    )
