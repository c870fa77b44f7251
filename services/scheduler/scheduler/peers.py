"""Keeps the `peers` bucket: the nodes that send each other requests, where, and with which certificate.

Invariant: who is in it is a node, and was one when its certificate was made. A node asks with the rights
it has anyway, on its own subject; one that was removed is taken out, at once and again by the survey.
"""

from collections.abc import Sequence
from typing import Any

from contracts.errors import Conflict, Poison, Unavailable
from contracts.mesh import Peer
from contracts.reports import NodePeer
from pydantic import ValidationError
from runtime.runtime import Runtime
from runtime.secrets import derive

from scheduler.authority import Authority

SURVEY_SECONDS = 60.0

# One that did not join with a token is in the installation's settings, and known once it has been heard.
_KNOWN = """
select node, max(address) from (
    select node, address from node_key where node = any(%s) and removed_at is null
    union all select name, null from node where name = any(%s)
) known group by node
"""


class Peers:
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._bucket = runtime.bus.bucket("peers")
        self._authority: Authority | None = None

    async def heard(self, reports: Sequence[NodePeer]) -> None:
        newest = {report.node: report for report in reports}
        known = await self._known(list(newest))
        for node, report in newest.items():
            if node not in known:
                self._runtime.log.info("no node, and wants to be a peer", node=node)
                continue
            try:
                await self._admit(report, known[node])
            except (Poison, Conflict, Unavailable, ValidationError) as error:
                # It asks again.
                self._runtime.log.warning("a peer is not admitted", node=node, error=str(error))

    async def _admit(self, report: NodePeer, joined_from: str | None) -> None:
        if self._authority is None:
            # Who may let everybody in may as well vouch for them.
            self._authority = Authority(derive(self._runtime.settings.nats_issuer_key, "mesh"))
        now = self._runtime.clock.now()
        certificate, ends = self._authority.certify(report.node, report.request, now)
        peer = Peer(
            node=report.node,
            host=report.host or _host(joined_from),
            port=report.port,
            certificate=certificate,
            authority=self._authority.pem,
            expires_at=ends,
        )
        await self._bucket.put(report.node, peer.model_dump_json().encode())
        self._runtime.log.info("peer admitted", node=peer.node, host=peer.host, expires_at=ends)

    async def survey(self) -> None:
        """Takes out who is no node any more."""
        if not self._runtime.bus.connected:
            return
        there = await self._bucket.keys()
        known = await self._known(there)
        for node in set(there) - set(known):
            await self.forget(node)

    async def forget(self, node: str) -> None:
        if await self._bucket.get(node) is not None:
            await self._bucket.delete(node)
            self._runtime.log.info("peer taken out", node=node)

    async def _known(self, nodes: list[str]) -> dict[str, Any]:
        return dict(await self._runtime.store.read(_KNOWN, (nodes, nodes)))


def _host(address: str | None) -> str | None:
    """Where one joined from, as it stands in an address with a port; the gateway may not have known."""
    if address is None or address == "unknown":
        return None
    return f"[{address}]" if ":" in address else address
