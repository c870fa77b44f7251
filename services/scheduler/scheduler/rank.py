"""PURE. Which of the feasible nodes takes an instance.

The node where the workload already runs while it has room, else the one with the lowest utilization; or,
where the operator packs, the fullest one that still has room. A workload that spreads goes where least of it
runs. The same fleet and the same workload always give the same answer. Used by `plan`.
"""

from collections.abc import Iterable, Mapping
from zlib import crc32

from scheduler.feasible import obstacle
from scheduler.fleet import EXACT, Fleet, Node, Pool
from scheduler.reconcile import Demand, SlotKey


def choose(
    fleet: Fleet, demand: Demand, slot: SlotKey, homes: Mapping[str, int], *, failover: bool = False
) -> Node | None:
    """`homes`: the nodes the workload runs on, and how many of its slots are there."""
    if demand.bound is not None:
        return _open(fleet, demand, [demand.bound], homes, failover=failover)
    if homes and not demand.spread and not demand.apart:
        home = _open(fleet, demand, homes, homes, failover=failover)
        if home is not None:
            return home
    pool = fleet.pool(demand.region, demand.needs, failover=failover)
    seed = crc32(f"{demand.workload}.{slot[0]}.{slot[1]}".encode())
    if fleet.pack or demand.spread or demand.apart:
        return _arranged(pool, demand, homes, seed, pack=fleet.pack, failover=failover)
    return pool.idlest(demand.room, seed) or next(pool.having(demand.room, seed), None)


def _open(
    fleet: Fleet, demand: Demand, names: Iterable[str], homes: Mapping[str, int], *, failover: bool
) -> Node | None:
    """The least utilized of these that takes it."""
    best: Node | None = None
    for name in names:
        node = fleet.node(name)
        if node is None or obstacle(node, demand, demand.room, failover=failover, homes=homes) is not None:
            continue
        if best is None or (node.score, node.name) < (best.score, best.name):
            best = node
    return best


def _arranged(
    pool: Pool, demand: Demand, homes: Mapping[str, int], seed: int, *, pack: bool, failover: bool
) -> Node | None:
    """Where few of the workload's slots are; among those the fullest when packing, the emptiest when not."""
    if pack and len(pool.nodes) > EXACT:
        # Filled from the first node on, however many there are.
        having = pool.having(demand.room)
        return next((node for node in having if not (demand.apart and node.name in homes)), None)
    best: tuple[int, float, int] | None = None
    chosen: Node | None = None
    for i, node in enumerate(pool.some(seed)):
        count = homes.get(node.name, 0) if demand.spread or demand.apart else 0
        if (count and demand.apart) or not node.fits(demand.room, failover=failover):
            continue
        key = count, -node.score if pack else node.score, i
        if best is None or key < best:
            best, chosen = key, node
    if chosen is not None:
        return chosen
    having = pool.having(demand.room, seed)
    return next((node for node in having if not (demand.apart and node.name in homes)), None)
