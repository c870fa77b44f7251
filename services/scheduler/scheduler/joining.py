"""How a machine becomes a node: a token made by an administrator, used once, and the machine's own key.

Invariant: a token makes at most one node, before it expires and unless it is revoked; neither a token nor a
key can be read back from the tables. Every bad token gets the same answer. Answers queries of the gateway.
"""

import secrets
from datetime import datetime, timedelta
from typing import Any

from contracts.errors import Conflict, Forbidden, NotFound, Unavailable
from contracts.ids import new_id
from contracts.queries import (
    Joined,
    JoinTokenInfo,
    JoinTokenMade,
    JoinTokenPage,
    JoinTokenRevoked,
    JoinTokens,
    NewJoinToken,
    NodeJoined,
)
from runtime.runtime import Runtime
from runtime.store import PLATFORM, Tx
from sqlalchemy import delete, select

from scheduler.door import digest_of
from scheduler.tables import JoinTokenRow, NodeKeyRow, NodeRow

PAGE = 50
# Of a token that can no longer be used.
KEPT = timedelta(days=30)
_REFUSED = "the join token is not valid (any more); ask an administrator for a new one"


class Joining:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def make(self, order: JoinTokenMade) -> NewJoinToken:
        now = self._runtime.clock.now()
        token = f"berth_{secrets.token_urlsafe(32)}"
        row = JoinTokenRow(
            id=new_id("jtk"),
            digest=digest_of(token),
            region=order.region,
            node=order.node,
            labels=dict(order.labels),
            created_by=order.created_by,
            created_at=now,
            expires_at=now + timedelta(seconds=order.seconds),
        )
        async with self._runtime.store.transaction(PLATFORM) as tx:
            if order.node is not None and await _taken(tx, order.node):
                raise _name_taken(order.node)
            tx.add(row)
        return NewJoinToken(token=token, info=_info(row))

    async def tokens(self, query: JoinTokens) -> JoinTokenPage:
        """The newest first."""
        statement = select(JoinTokenRow).order_by(JoinTokenRow.id.desc()).limit(PAGE + 1)
        if query.after is not None:
            statement = statement.where(JoinTokenRow.id < query.after)
        async with self._runtime.store.transaction(PLATFORM) as tx:
            rows = await tx.scalars(statement)
        shown = rows[:PAGE]
        return JoinTokenPage(
            tokens=tuple(_info(row) for row in shown),
            next=shown[-1].id if len(rows) > PAGE else None,
        )

    async def revoke(self, order: JoinTokenRevoked) -> JoinTokenInfo:
        """A node that has joined with it stays."""
        async with self._runtime.store.transaction(PLATFORM) as tx:
            row = await tx.get(JoinTokenRow, order.token, lock=True)
            if row is None:
                raise NotFound(f"there is no join token {order.token}")
            if row.revoked_at is None:
                row.revoked_at = self._runtime.clock.now()
            return _info(row)

    async def join(self, request: NodeJoined) -> Joined:
        key = digest_of(request.key)
        now = self._runtime.clock.now()
        async with self._runtime.store.transaction(PLATFORM) as tx:
            token = await tx.one(
                select(JoinTokenRow).where(JoinTokenRow.digest == digest_of(request.token)).with_for_update()
            )
            if token is None or not _valid(token, key, now):
                raise Forbidden(_REFUSED)
            if token.used_by is None:
                node = token.node or request.node or f"node-{secrets.token_hex(4)}"
                if await _taken(tx, node):
                    raise _name_taken(node)
                token.used_at, token.used_by, token.key_digest = now, node, key
                await _admit(tx, token, node, request)
            node, region = token.used_by, token.region
        self._runtime.log.info("joined", node=node, region=region, address=request.address)
        return Joined(node=node, region=region, seal_key=self._runtime.settings.seal_key_of_node(node))

    async def forget(self) -> None:
        async with self._runtime.store.transaction(PLATFORM) as tx:
            await tx.execute(
                delete(JoinTokenRow).where(JoinTokenRow.expires_at < self._runtime.clock.now() - KEPT)
            )


async def _admit(tx: Tx, token: JoinTokenRow, node: str, request: NodeJoined) -> None:
    facts: dict[str, Any] = {
        "digest": token.key_digest,
        "region": token.region,
        "labels": dict(token.labels),
        "address": request.address,
        "machine": dict(request.machine),
        "joined_at": token.used_at,
        "removed_at": None,
    }
    known = await tx.get(NodeKeyRow, node, lock=True)
    if known is None:
        tx.add(NodeKeyRow(node=node, **facts))
        return
    if known.removed_at is not None and (known.cut_at is None or known.cut_at < known.removed_at):
        # On the bus both would be the same one, and the old machine would never be looked for again.
        raise Unavailable(
            f"a machine named {node} was removed, and is not cut off yet; try again in a minute", node=node
        )
    # Removed a moment ago, and back.
    for name, value in facts.items():
        setattr(known, name, value)


def _valid(token: JoinTokenRow, key: str, now: datetime) -> bool:
    mine = token.used_by is None or token.key_digest == key
    return mine and token.revoked_at is None and now < token.expires_at


async def _taken(tx: Tx, node: str) -> bool:
    key = await tx.get(NodeKeyRow, node)
    return (key is not None and key.removed_at is None) or await tx.get(NodeRow, node) is not None


def _name_taken(node: str) -> Conflict:
    return Conflict(f"there is a node {node} already; choose another name, or remove it first", node=node)


def _info(row: JoinTokenRow) -> JoinTokenInfo:
    return JoinTokenInfo(
        id=row.id,
        region=row.region,
        node=row.node,
        labels=row.labels,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        used_at=row.used_at,
        used_by=row.used_by,
    )
