"""Keeps what instances and nodes say: handed over by nodes, numbered without a gap, forgotten in time.

Invariant: a piece is kept once, behind the one before it, and only from a node that is ordered to run the
workload it speaks of, or was when it began to. A piece that is on the disk a little later than its answer is
lost with a database that fails: then its node hears how far it is, and hands it over again. The routes are in
`app_logs`.
"""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from contracts.errors import InvalidInput
from contracts.lines import KeepLines, Kept, Piece
from contracts.queries import Places, PlacesOf
from contracts.reports import LinesKept
from runtime.store import PLATFORM

from gateway.desk import Desk

_KNOWN = (
    "select instance, subject, organization, kept from line_source where node = %s and instance = any(%s)"
)
_OWNERS = "select id, organization from workload where id = any(%s)"

# Heads are locked in one order by everybody.
_KEEP = """
with told as (
    select * from unnest(
        %(instances)s::text[], %(subjects)s::text[], %(organizations)s::text[], %(processes)s::text[],
        %(after)s::bigint[], %(upto)s::bigint[], %(lines)s::int[], %(last_at)s::timestamptz[],
        %(bodies)s::bytea[]
    ) with ordinality as t(instance, subject, organization, process, after, upto, lines, last_at, body, place)
), counted as (
    insert into line_source as s (node, instance, subject, organization, kept, was)
    select %(node)s, instance, subject, organization, upto, after from told
    on conflict (node, instance) do update set kept = excluded.kept, was = excluded.was, at = now()
        where s.kept = excluded.was
    returning s.instance
), taken as (
    select t.*, sum(t.lines) over (partition by t.subject order by t.place) - t.lines as before,
        sum(t.lines) over (partition by t.subject) as together
    from told t join counted using (instance)
), head as (
    insert into line_head as h (subject, organization, last, bytes)
    select subject, min(organization), sum(lines), sum(length(body)) from taken
    group by subject order by subject
    on conflict (subject) do update set last = h.last + excluded.last, bytes = h.bytes + excluded.bytes
    returning h.subject, h.last
), written as (
    insert into piece (subject, first, organization, instance, process, lines, last_at, body)
    select t.subject, head.last - t.together + t.before + 1, t.organization, t.instance, t.process, t.lines,
        t.last_at, t.body
    from taken t join head using (subject)
)
select instance, subject from taken
"""

_OLD = "delete from piece where last_at < %s"
_FORGOTTEN = "delete from line_source where at < %s"
# Only of those that have grown too large are the pieces looked at, the newest first.
_TOO_MUCH = """
with large as (select subject from line_head where bytes > %(most)s), counted as (
    select p.subject, p.first, sum(length(p.body)) over (partition by p.subject order by p.first desc) as upto
    from piece p join large using (subject)
)
delete from piece p using counted c where p.subject = c.subject and p.first = c.first and c.upto > %(most)s
"""
_WEIGHED = """
update line_head h set bytes = coalesce(
    (select sum(length(p.body)) from piece p where p.subject = h.subject), 0)
where h.bytes > %(most)s
"""
_DELETED = """
with gone as (
    delete from line_head h using workload w where w.id = h.subject and w.state = 'deleted'
    returning h.subject
), sources as (delete from line_source s using gone where s.subject = gone.subject)
delete from piece p using gone where p.subject = gone.subject
"""


async def keep(desk: Desk, question: KeepLines) -> Kept:
    node = question.node
    if len({piece.instance for piece in question.pieces}) < len(question.pieces):
        raise InvalidInput("one instance has one piece in a message")
    known = await _known(desk, node, [piece.instance for piece in question.pieces])
    new = {p.workload for p in question.pieces if p.workload is not None and p.instance not in known}
    owners: dict[str, str] = dict(await desk.store.look(_OWNERS, (list(new),))) if new else {}
    ordered = {workload for workload in owners if await _runs(desk, workload, node)}

    def allowed(piece: Piece) -> bool:
        if piece.instance in known:
            return known[piece.instance].subject == (piece.workload or node)
        return piece.workload is None or piece.workload in ordered

    pieces = [piece for piece in question.pieces if allowed(piece)]
    heard = {piece.instance for piece in pieces}
    kept = {instance: source.kept for instance, source in known.items() if instance in heard}
    if full := [piece for piece in pieces if piece.lines and piece.body]:
        owners |= {source.subject: source.organization for source in known.values() if source.organization}
        taken = await _keep(desk, node, full, owners)
        for subject in set(taken.values()):
            await desk.bus.report(LinesKept(of=subject))
        kept |= {piece.instance: piece.upto for piece in full if piece.instance in taken}
        if left := [piece.instance for piece in full if piece.instance not in taken]:
            # Somebody was quicker, such as the same piece a moment ago.
            kept |= {instance: source.kept for instance, source in (await _known(desk, node, left)).items()}
    return Kept(
        kept={instance: kept.get(instance, 0) for instance in heard},
        refused=tuple(piece.instance for piece in question.pieces if piece.instance not in heard),
    )


class _Source(NamedTuple):
    subject: str
    organization: str | None
    kept: int


async def _known(desk: Desk, node: str, instances: list[str]) -> dict[str, _Source]:
    return {row[0]: _Source(*row[1:]) for row in await desk.store.look(_KNOWN, (node, instances))}


async def _runs(desk: Desk, workload: str, node: str) -> bool:
    answer: Places = await desk.bus.ask(PlacesOf(workload=workload))
    return node in {place.node for place in answer.places}


async def _keep(desk: Desk, node: str, pieces: list[Piece], owners: dict[str, str]) -> dict[str, str]:
    """Instance -> subject, of those pieces that are kept by now."""
    told = {
        "node": node,
        "instances": [p.instance for p in pieces],
        "subjects": [p.workload or node for p in pieces],
        "organizations": [owners.get(p.workload or "") for p in pieces],
        "processes": [p.process for p in pieces],
        "after": [p.after for p in pieces],
        "upto": [p.upto for p in pieces],
        "lines": [p.lines for p in pieces],
        "last_at": [moment_of(p.upto) for p in pieces],
        "bodies": [p.body for p in pieces],
    }
    async with desk.store.transaction(PLATFORM) as tx:
        connection = await tx.connection()
        # It is on the disk a moment later: what its loss costs is handed over again.
        await connection.execute("set local synchronous_commit = off")
        return dict(await (await connection.execute(_KEEP, told, prepare=True)).fetchall())


async def forget(desk: Desk) -> None:
    days, most = desk.settings.log_days, desk.settings.log_mb * 1024 * 1024
    before = desk.clock.now() - timedelta(days=days)
    for statement, parameters in (
        (_OLD, (before,)),
        (_FORGOTTEN, (before,)),
        (_TOO_MUCH, {"most": most}),
        (_WEIGHED, {"most": most}),
        (_DELETED, None),
    ):
        async with desk.store.transaction(PLATFORM) as tx:
            await (await tx.connection()).execute(statement, parameters)


def moment_of(nanoseconds: int) -> datetime:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
