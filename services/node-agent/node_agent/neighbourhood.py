"""This node among the others: what they have, what they are told of it, and how it leaves a workload.

Any node serves any hostname: the ingress here leads to instances here and, in proportion, to the ingresses
of the nodes that have others. Its files follow what is known of them within moments, workload by workload.
"""

from collections.abc import Callable

import structlog
from contracts.errors import Unavailable
from runtime.clock import Clock

from node_agent.elsewhere import Elsewhere
from node_agent.endpoints import EndpointBoard
from node_agent.ingress import TraefikProxy
from node_agent.membership import Membership
from node_agent.mesh_file import Mesh
from node_agent.routes import Routes

log = structlog.get_logger("node-agent.neighbourhood")

# What changes within it is written together.
_GATHER = 0.05
_AGAIN = 0.2
# So long at most another node's first instance is waited for before ours leave.
_REPLACED = 5.0
_LOOK_EVERY = 0.05
# Other nodes have heard by then and have written it; and their ingresses need about as long as ours to read
# it, which may have begun to read what was before.
_HEARD = 1.2


class Neighbourhood:
    def __init__(
        self, node: str, elsewhere: Elsewhere, membership: Membership, here_port: int, clock: Clock
    ) -> None:
        self._node = node
        self.elsewhere = elsewhere
        self._membership = membership
        self._here_port = here_port
        self._clock = clock
        # How long the ingress takes to read its files when one has changed.
        self._pace = 0.0

    def open(self) -> None:
        self.elsewhere.open()
        self._membership.open()

    # --- what the ingress asks ------------------------------------------------------------------------

    def shares(self, workload: str) -> tuple[tuple[str, int], ...]:
        return self.elsewhere.shares(workload)

    def mesh(self, nodes: set[str]) -> Mesh:
        peers = {node: self.elsewhere.address(node) for node in nodes}
        return Mesh(self._here_port, self._membership.credentials, peers)

    def took(self, seconds: float) -> None:
        # The slow ones count: one that is quick has met the proxy at rest.
        self._pace = max(seconds, self._pace * 0.9)

    # --- what goes on -----------------------------------------------------------------------------------

    async def keep_membership(self, proxy: TraefikProxy) -> None:
        if await self._membership.keep(self.elsewhere.peer(self._node)):
            await proxy.spread({})

    async def spread(self, proxy: TraefikProxy, routes: Routes, keeps: Callable[[str], bool]) -> None:
        while True:
            changed = await self.elsewhere.changed()
            # What runs here is its keeper's to publish first, and brings the others' shares with it.
            known = {name for name in changed if proxy.keeps(name) or not (keeps(name) or self._ours(name))}
            try:
                again = await proxy.spread({name: self._hostnames(name, routes) for name in known})
            except BaseException:
                self.elsewhere.touch(known)
                raise
            self.elsewhere.touch(again)
            await self._clock.sleep(_AGAIN if again else _GATHER)

    async def reassert(self, proxy: TraefikProxy) -> None:
        """Files that somebody has touched are written again."""
        self.elsewhere.touch(await proxy.altered())

    def _ours(self, workload: str) -> bool:
        placed = self.elsewhere.placed(workload)
        return placed is not None and self._node in placed.nodes

    def _hostnames(self, workload: str, routes: Routes) -> tuple[str, ...]:
        placed = self.elsewhere.placed(workload)
        return () if placed is None else routes.hostnames(workload, placed.organization)

    async def farewell(self, workload: str, board: EndpointBoard) -> None:
        """Before the last instance here stops being routed: returns when no other node sends to it any more.

        Whoever was to take its place has an instance by then; other nodes are told of it as we are.
        """
        end = self._clock.monotonic() + _REPLACED
        placed = self.elsewhere.placed(workload)
        if placed is not None and set(placed.nodes) - {self._node}:
            while not self.shares(workload) and self._clock.monotonic() < end:
                await self._clock.sleep(_LOOK_EVERY)
        try:
            await board.told(workload, ())
        except Unavailable as error:
            log.warning("other nodes cannot be told", workload=workload, error=error.message)
        await self._clock.sleep(_HEARD + 2 * self._pace)
