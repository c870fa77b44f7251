"""How a workload stands on all nodes, and how many instances of it a request may be sent to on each. PURE.

What a node says of its instances counts while the scheduler says that the workload is placed there. A node
that was just told to leave serves on until another has an instance, and never again from then on.
"""

from collections.abc import Container

from contracts.ids import AppId, NodeName
from contracts.mesh import Placed
from contracts.model import Model

# Node -> instances there.
Shares = tuple[tuple[str, int], ...]


class Standing(Model):
    workload: AppId
    placed: Placed | None = None
    # What every node says, whether it is believed or not.
    counts: dict[NodeName, int] = {}
    lingering: tuple[NodeName, ...] = ()


def placed(before: Standing, now: Placed | None) -> Standing:
    if before.placed is not None and now is not None and now.revision < before.placed.revision:
        return before
    was = () if before.placed is None else before.placed.nodes
    there = () if now is None else now.nodes
    # Who is told to stop all of it is to be sent nothing more.
    left = {*before.lingering, *was} - {*there} if there else set()
    lingering = tuple(sorted(node for node in left if before.counts.get(node)))
    return _settled(before.model_copy(update={"placed": now, "lingering": lingering}))


def counted(before: Standing, node: str, count: int) -> Standing:
    counts = {**before.counts, node: count}
    if not count:
        del counts[node]
    return _settled(before.model_copy(update={"counts": counts}))


def _settled(standing: Standing) -> Standing:
    if standing.lingering and any(standing.counts.get(node) for node in _nodes(standing)):
        return standing.model_copy(update={"lingering": ()})
    return standing


def shares(standing: Standing, us: str, reached: Container[str]) -> Shares:
    """Of other nodes that can be reached."""
    counts = standing.counts
    serving = [node for node in _nodes(standing) if counts.get(node)] or standing.lingering
    return tuple(sorted((n, counts[n]) for n in serving if n != us and n in reached and counts.get(n)))


def _nodes(standing: Standing) -> tuple[str, ...]:
    return () if standing.placed is None else standing.placed.nodes
