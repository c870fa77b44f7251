"""Which subnet an organization gets on this node, and which address an instance gets in it. PURE.

Docker's own pools end at about 31 networks, so the agent deals out an operator's pool by itself.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from contracts.errors import ProviderFailed


def free_subnet(pool: IPv4Network, bits: int, taken: Iterable[IPv4Network]) -> IPv4Network:
    """The first subnet of the pool that touches nothing this machine already has a route for."""
    near = [network for network in taken if network.overlaps(pool)]
    for subnet in pool.subnets(new_prefix=bits):
        if not any(subnet.overlaps(network) for network in near):
            return subnet
    raise ProviderFailed(
        f"no subnet is left in {pool} for another organization: set NODE_AGENT_NETWORK_POOL to a larger one"
    )


def free_address(subnet: IPv4Network, taken: Iterable[IPv4Address]) -> IPv4Address:
    """The first host address is the gateway's and never dealt out."""
    used = set(taken)
    hosts = subnet.hosts()
    next(hosts)
    for address in hosts:
        if address not in used:
            return address
    raise ProviderFailed(f"no address is left in {subnet} for another instance of this organization")


def routes_of(table: str) -> list[IPv4Network]:
    """The networks in a `/proc/net/route` table, the default route aside."""
    networks = []
    for line in table.splitlines()[1:]:
        columns = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(columns[i]), "little") for i in (1, 7))
        if mask:
            networks.append(IPv4Network((destination & mask, mask.bit_count())))
    return networks
