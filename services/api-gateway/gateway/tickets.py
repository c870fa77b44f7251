"""Tickets: each opens one session, once, for whom and for what it was made.

A browser cannot send a header with a WebSocket, so the permission is asked for before, over the API, and what
it gives is worth nothing after a moment. Only its digest is kept.
"""

import hashlib
import secrets
from datetime import timedelta
from typing import Literal

from contracts.errors import Forbidden
from contracts.jobs_api import TicketView
from contracts.model import Model
from contracts.sessions import Open
from runtime.store import PLATFORM, Tx
from sqlalchemy import delete, select

from gateway.desk import Desk
from gateway.identity_tables import MemberRow
from gateway.permissions import Speaker
from gateway.tables import TicketRow

LIFE = timedelta(seconds=60)
Verb = Literal["run", "exec"]


class Target(Model):
    opens: Open
    # None: that of the job, once it has one.
    node: str | None = None


def issue(caller: Speaker, tx: Tx, workload: str, verb: Verb, target: Target) -> TicketView:
    secret = secrets.token_urlsafe(32)
    expires = caller.desk.clock.now() + LIFE
    tx.add(
        TicketRow(
            digest=_digest(secret),
            organization=caller.organization,
            user_id=caller.user,
            workload=workload,
            verb=verb,
            target=target.model_dump(mode="json"),
            expires_at=expires,
        )
    )
    path = f"/api/paas/apps/{workload}/{verb}/session"
    return TicketView(ticket=secret, path=path, expires_at=expires)


async def redeem(desk: Desk, secret: str, workload: str, verb: str) -> tuple[TicketRow, Target]:
    """Whatever becomes of it, it is used up."""
    async with desk.store.transaction(PLATFORM) as tx:
        used = await tx.execute(
            delete(TicketRow).where(TicketRow.digest == _digest(secret)).returning(TicketRow)
        )
        ticket = used.scalar_one_or_none()
        if ticket is not None:
            tx.session.expunge(ticket)
    if ticket is None or ticket.expires_at <= desk.clock.now():
        raise Forbidden("the ticket is used or has expired; ask for another")
    if (ticket.workload, ticket.verb) != (workload, verb):
        raise Forbidden("the ticket is for something else")
    async with desk.store.transaction(PLATFORM) as tx:
        member = await tx.one(
            select(MemberRow.user_id).where(
                MemberRow.organization == ticket.organization, MemberRow.user_id == ticket.user_id
            )
        )
    if member is None:
        raise Forbidden("its user is no member of the organization any more")
    return ticket, Target.model_validate(ticket.target)


async def forget(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(delete(TicketRow).where(TicketRow.expires_at < desk.clock.now()))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
