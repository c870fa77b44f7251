"""Keeps what instances and nodes say: handed over by nodes, numbered without a gap, forgotten in time.

Invariant: a piece is kept once, behind the one before it, and only from a node that is ordered to run the
workload it speaks of, or was when it began to. A piece that is on the disk a little later than its answer is
lost with a database that fails: then its node hears how far it is, and hands it over again. The routes are in
`app_logs`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.errors import InvalidInput
from contracts.lines import KeepLines, Kept, Piece
from contracts.queries import Places, PlacesOf
from contracts.reports import LinesKept
from psycopg import AsyncConnection
from runtime.store import PLATFORM, Tx

from gateway.desk import Desk

_KNOWN = """
select instance, subject, kept from line_source where node = %s and instance = any(%s)
"""

_OWNERS = "select id, organization from workload where id = any(%s)"

# Heads are locked in one order by everybody.
_KEEP = """
with told as (
    select * from unnest(
        %(instances)s::text[], %(subjects)s::text[], %(organizations)s::text[], %(processes)s::text[],
        %(after)s::bigint[], %(upto)s::bigint[], %(lines)s::int[], %(first_at)s::timestamptz[],
        %(last_at)s::timestamptz[], %(bodies)s::bytea[]
    ) with ordinality as t(instance, subject, organization, process, after, upto, lines, first_at, last_at,
        body, place)
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
    insert into piece (
        subject, first, organization, node, instance, process, lines, first_at, last_at, body
    )
    select t.subject, head.last - t.together + t.before + 1, t.organization, %(node)s, t.instance,
        t.process, t.lines, t.first_at, t.last_at, t.body
    from taken t join head using (subject)
)
select subject, last, array(select instance from counted) from head
"""

_OLD = "delete from piece where last_at < %s"
_FORGOTTEN = "delete from line_source where at < %s"
# Only of those that have grown too large are the pieces looked at, the newest first.
_TOO_MUCH = """
with large as (select subject from line_head where bytes > %(most)s), counted as (
    select p.subject, p.first, sum(length(p.body)) over (partition by p.subject order by p.first desc) as upto
    from piece p join large using (subject)
), gone as (
    delete from piece p using counted c
    where p.subject = c.subject and p.first = c.first and c.upto > %(most)s returning p.subject
)
select count(*) from gone
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
    async with desk.store.transaction(PLATFORM) as tx:
        connection = await tx.connection()
        known = await _rows(connection, _KNOWN, (node, [piece.instance for piece in question.pieces]))
        kept = {instance: int(moment) for instance, _, moment in known}
        subjects: dict[str, str] = {instance: subject for instance, subject, _ in known}
        wanted = {p.workload for p in question.pieces if p.workload is not None}
        owners: dict[str, str] = dict(await _rows(connection, _OWNERS, (list(wanted),)))
    new = {piece.workload for piece in question.pieces if piece.instance not in subjects}
    ordered = {workload for workload in owners if workload in new and await _runs(desk, workload, node)}

    def allowed(piece: Piece) -> bool:
        if piece.instance in subjects:
            return subjects[piece.instance] == (piece.workload or node)
        return piece.workload is None or piece.workload in ordered

    pieces = [piece for piece in question.pieces if allowed(piece)]
    heard = {piece.instance for piece in pieces}
    if full := [piece for piece in pieces if piece.lines and piece.body]:
        async with desk.store.transaction(PLATFORM) as tx:
            now, grown = await _keep(tx, node, full, owners)
        kept |= now
        for subject, last in grown.items():
            await desk.bus.report(LinesKept(of=subject, last=last))
    return Kept(
        kept={piece.instance: kept.get(piece.instance, 0) for piece in pieces},
        refused=tuple(piece.instance for piece in question.pieces if piece.instance not in heard),
    )


async def _runs(desk: Desk, workload: str, node: str) -> bool:
    answer: Places = await desk.bus.ask(PlacesOf(workload=workload))
    return node in {place.node for place in answer.places}


async def _keep(
    tx: Tx, node: str, pieces: list[Piece], owners: dict[str, str]
) -> tuple[dict[str, int], dict[str, int]]:
    """How far each of these instances is now, and the newest line of each subject that has grown."""
    connection = await tx.connection()
    # It is on the disk a moment later: what its loss costs is handed over again.
    await connection.execute("set local synchronous_commit = off")
    told = {
        "node": node,
        "instances": [p.instance for p in pieces],
        "subjects": [p.workload or node for p in pieces],
        "organizations": [owners.get(p.workload or "") for p in pieces],
        "processes": [p.process for p in pieces],
        "after": [p.after for p in pieces],
        "upto": [p.upto for p in pieces],
        "lines": [p.lines for p in pieces],
        "first_at": [moment_of(p.first_at) for p in pieces],
        "last_at": [moment_of(p.upto) for p in pieces],
        "bodies": [p.body for p in pieces],
    }
    grown = await _rows(connection, _KEEP, told)
    taken = set(grown[0][2]) if grown else set()
    kept = {piece.instance: piece.upto for piece in pieces if piece.instance in taken}
    rest = [piece.instance for piece in pieces if piece.instance not in taken]
    if rest:
        kept |= {instance: int(k) for instance, _, k in await _rows(connection, _KNOWN, (node, rest))}
    return kept, {subject: int(last) for subject, last, _ in grown}


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


async def _rows(connection: AsyncConnection[Any], statement: str, parameters: Any) -> list[tuple[Any, ...]]:
    return await (await connection.execute(statement, parameters, prepare=True)).fetchall()
