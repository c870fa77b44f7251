"""Which subnet an organization gets on this node, and which address an instance gets in it. PURE.

Docker's own pools end at about 31 networks, so the agent deals out an operator's pool by itself.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from contracts.errors import ProviderFailed


def free_subnet(pool: IPv4Network, bits: int, taken: Iterable[IPv4Network], owner: str) -> IPv4Network:
    """One that touches nothing this machine already has a route for."""
    near = [network for network in taken if network.overlaps(pool)]
    size = 1 << (32 - bits)
    for place in _places(pool.num_addresses // size, owner):
        subnet = IPv4Network((int(pool.network_address) + place * size, bits))
        if not any(subnet.overlaps(network) for network in near):
            return subnet
    raise ProviderFailed(
        f"no subnet is left in {pool} for another organization: set NODE_AGENT_NETWORK_POOL to a larger one"
    )


def free_address(subnet: IPv4Network, taken: Iterable[IPv4Address], owner: str) -> IPv4Address:
    """The first host address is the gateway's and never dealt out, the last one is everybody's."""
    used = set(taken)
    for place in _places(subnet.num_addresses - 3, owner):
        address = subnet[place + 2]
        if address not in used:
            return address
    raise ProviderFailed(f"no address is left in {subnet} for another instance of this organization")


def _places(number: int, owner: str) -> Iterator[int]:
    """All of them, from one that is the owner's: what somebody leaves is not the next one's at once."""
    first = int.from_bytes(hashlib.sha256(owner.encode()).digest()[:8], "big") % number
    return itertools.chain(range(first, number), range(first))


def routes_of(table: str) -> list[IPv4Network]:
    """The networks in a `/proc/net/route` table, the default route aside."""
    networks = []
    for line in table.splitlines()[1:]:
        columns = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(columns[i]), "little") for i in (1, 7))
        if mask:
            networks.append(IPv4Network((destination & mask, mask.bit_count())))
    return networks
