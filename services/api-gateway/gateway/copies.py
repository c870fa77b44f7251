"""What a customer is told of the copies of his data: how old the newest is, what would be lost, what was.

Called by `volumes` for the view, and for the word of the scheduler that data has gone to another node.
"""

from datetime import datetime

from contracts.copies import Copying, WorkloadCopies
from contracts.events import VolumesMoved
from contracts.volumes_api import CopiesView, CopyProgress
from runtime.store import Tx
from sqlalchemy.dialects.postgresql import insert

from gateway import workloads
from gateway.tables import ActivityRow


def copies_view(minutes: int | None, known: WorkloadCopies) -> CopiesView:
    return CopiesView(
        every_minutes=minutes,
        newest=known.newest,
        under_way=None if known.copying is None else _progress(known.copying),
        words=_words(minutes, known.newest),
    )


def _words(minutes: int | None, newest: datetime | None) -> str:
    if minutes is None and newest is None:
        return "the plan has no copies: what is only on a node that is lost is lost with it"
    if newest is None:
        return "not copied yet: were its node lost now, everything written would be lost"
    return f"last copied {_told(newest)}; were its node lost now, what was written since would be lost"


def _told(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _progress(copying: Copying) -> CopyProgress:
    share = 100 * copying.done_mb // copying.total_mb if copying.total_mb else 0
    if copying.why == "copy":
        words = f"copied to another node, {share} %"
    elif copying.last:
        words = f"moves to {copying.target}: stopped for a moment, the last of its data follows"
    else:
        words = f"moves to {copying.target}: its data is copied while it runs, {share} %"
    return CopyProgress(
        why=copying.why,
        percent=min(share, 100),
        sent_mb=copying.sent_mb,
        since=copying.since,
        words=words if copying.words is None else f"{words} ({copying.words})",
    )


async def volumes_moved(event: VolumesMoved, tx: Tx) -> None:
    row = await workloads.find(tx, event.workload)
    if row is None:
        return
    if event.lost_until is None:
        kind, words = "moved", f"moved from {event.source} to {event.target} with all its data"
    else:
        kind = "restored"
        words = (
            f"{event.source} went offline; it goes on at {event.target} from the copy of "
            f"{_told(event.taken_at)}. What was written from then to {_told(event.lost_until)} is not in it"
        )
    await tx.execute(
        insert(ActivityRow)
        .values(
            id=event.id,
            organization=row.organization,
            workload=row.id,
            kind=kind,
            process="",
            words=words,
            at=event.at,
        )
        .on_conflict_do_nothing(index_elements=["id"])
    )
