"""What happened to an app that nobody asked for, and its words: crashes, restarts of the unhealthy, losses,
moves away from a lost node, and places where it does not start.

A trouble is shown as the app's reason for as long as it is the newest that is known of it. Entries are kept
for a while and come from the events of nodes and scheduler alone.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from contracts.events import (
    InstanceCrashed,
    InstanceStopped,
    PlacementBlocked,
    PlacementDecided,
    RolloutFinished,
    SleepChanged,
)
from contracts.jobs_api import ActivityList
from fastapi import APIRouter, Response
from runtime.store import PLATFORM, Tx
from sqlalchemy import delete
from sqlalchemy.dialects.postgresql import insert

from gateway import outages, pages, workloads
from gateway.desk import Desk
from gateway.permissions import Member
from gateway.tables import ActivityRow

router = APIRouter(prefix="/api/paas", tags=["apps"])

_KEPT = timedelta(days=30)
# A single crash is over when the instance is back; of a loop the next word comes later and later.
_SHOWN = timedelta(seconds=120)
_LIST = pages.page(
    "activity",
    """json_build_object(
        'id', a.id, 'kind', a.kind, 'process', a.process, 'words', a.words, 'at', a.at
    )""",
    "from activity a where a.organization = scope.organization and a.workload = %s and {after}",
    "a.number",
)


@router.get("/apps/{app}/activity", response_model=ActivityList)
async def list_activity(app: str, caller: Member, after: str | None = None) -> Response:
    async with caller.desk.store.transaction(caller.organization) as tx:
        await workloads.known(tx, app)
    place = pages.number(after)
    return await pages.listed(caller.desk.store, _LIST, caller.organization, app, after=place)


async def crashed(event: InstanceCrashed, tx: Tx) -> None:
    if not await _note(tx, event, "crashed", event.words, str(event.slot)):
        return
    row = await workloads.find(tx, event.workload)
    if row is None:
        return
    await outages.ended(row, event, tx)
    if event.crashes >= 2:
        row.trouble = event.words
        row.trouble_until = event.at + timedelta(seconds=event.seconds_away) + _SHOWN


async def stopped(event: InstanceStopped, tx: Tx) -> None:
    """Only what was not meant."""
    if event.reason == "unhealthy":
        words = f"{event.slot} was restarted: {event.words or 'it was unhealthy'}"
        row = await workloads.find(tx, event.workload)
        if await _note(tx, event, "restarted", words, str(event.slot)) and row is not None:
            await outages.ended(row, event, tx)
    elif event.reason == "lost":
        words = f"{event.slot} is gone: {event.words or 'nobody knows why'}"
        await _note(tx, event, "lost", words, str(event.slot))


async def slept(event: SleepChanged, tx: Tx) -> None:
    await _note(tx, event, "slept" if event.asleep else "woke", event.words or "")


async def moved(event: PlacementDecided | PlacementBlocked, words: str, tx: Tx) -> None:
    """Its node was lost: where it goes, or that it has nowhere to go."""
    await _note(tx, event, "moved", words)


async def rolled_out(event: RolloutFinished, before: Mapping[str, Any] | None, tx: Tx) -> None:
    """A release that has lived does not start at a place, which is tried again; or it does after all."""
    known = None if before is None or before["ok"] else before
    if event.ok and known is not None:
        await _note(tx, event, "recovered", f"it has come to life on {event.node}")
    elif not event.ok and (known is None or known["reason"] != event.reason):
        why = event.reason or "the instances did not become healthy"
        await _note(tx, event, "failed", f"it does not come to life on {event.node}: {why}")


async def _note(
    tx: Tx,
    event: InstanceCrashed
    | InstanceStopped
    | PlacementDecided
    | PlacementBlocked
    | RolloutFinished
    | SleepChanged,
    kind: str,
    words: str,
    process: str = "",
) -> bool:
    if await workloads.find(tx, event.workload) is None:
        return False
    written = await tx.execute(
        insert(ActivityRow)
        .values(
            id=event.id,
            organization=event.organization,
            workload=event.workload,
            kind=kind,
            process=process,
            words=words,
            at=event.at,
        )
        .on_conflict_do_nothing(index_elements=["id"])
        .returning(ActivityRow.id)
    )
    return written.first() is not None


async def forget(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(delete(ActivityRow).where(ActivityRow.at < desk.clock.now() - _KEPT))
