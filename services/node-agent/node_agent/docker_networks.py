"""One Docker network per organization: its subnet, its bridge, the addresses in it. Blocking.

The bridge's name begins with the prefix the firewall knows, the subnet comes from the operator's pool, every
address is fixed and outlives a restart of its container. Used by `DockerEngine`, under its lock.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import structlog

from node_agent import labels
from node_agent.addresses import free_address, free_subnet, routes_of

log = structlog.get_logger("node-agent.networks")

_ROUTES = Path("/proc/net/route")
_INTERFACES = Path("/sys/class/net")


@dataclass(frozen=True, slots=True)
class Network:
    name: str
    subnet: IPv4Network
    bridge: str


class Networks:
    def __init__(self, prefix: str, node: str, pool: IPv4Network, bits: int) -> None:
        self._prefix = prefix
        self._own = {labels.PREFIX: prefix, labels.NODE: node}
        self._pool = pool
        self._bits = bits

    def ensure(self, client: Any, organization: str) -> tuple[Network, bool]:
        """The organization's network, and whether it had to be made."""
        for found in self._list(client):
            if found["Labels"].get(labels.ORGANIZATION) == organization:
                return _network(found), False
        subnet = free_subnet(self._pool, self._bits, self._taken(client), organization)
        network = Network(self._name(organization), subnet, self._bridge(organization))
        self._create(client, network, organization)
        return network, True

    def address(self, client: Any, network: Network, instance: str) -> IPv4Address:
        """A free one. What a container had been given is in its labels, also while it does not run."""
        given = (IPv4Address(member["Labels"][labels.ADDRESS]) for member in self._members(client))
        return free_address(network.subnet, given, instance)

    def bridges(self, client: Any) -> list[str]:
        return [_network(found).bridge for found in self._list(client)]

    def repair(self, client: Any) -> None:
        """Docker does not notice a bridge that was taken away: its network is made again, same addresses."""
        for found in self._list(client):
            network = _network(found)
            if (_INTERFACES / network.bridge).exists():
                continue
            with _sparing(network.name):
                for member in self._members(client):
                    if network.name in member["NetworkSettings"]["Networks"]:
                        client.disconnect_container_from_network(member["Id"], found["Id"], force=True)
                client.remove_network(found["Id"])
                self._create(client, network, found["Labels"][labels.ORGANIZATION])
        self._rejoin(client)

    def _rejoin(self, client: Any) -> None:
        """Also those who were left without a network by a repair that ended halfway."""
        there = {found["Name"] for found in self._list(client)}
        for member in self._members(client):
            organization, address = (
                member["Labels"][label] for label in (labels.ORGANIZATION, labels.ADDRESS)
            )
            name = self._name(organization)
            if name in member["NetworkSettings"]["Networks"]:
                continue
            with _sparing(name):
                if name not in there:
                    subnet = IPv4Network(f"{address}/{self._bits}", strict=False)
                    self._create(client, Network(name, subnet, self._bridge(organization)), organization)
                    there.add(name)
                client.connect_container_to_network(member["Id"], name, ipv4_address=address)

    def _members(self, client: Any) -> list[dict[str, Any]]:
        found = client.containers(all=True, filters={"label": self._filters()})
        ended = ("removing", "dead")
        return [one for one in found if labels.ours(self._prefix, one) and one["State"] not in ended]

    def forget_unused(self, client: Any) -> None:
        """The network of an organization goes some time after its last instance here: it is made anew, with
        its rules, in a quarter of a second, which a restart or the next release need not wait for."""
        from docker.errors import APIError

        used = {member["Labels"].get(labels.ORGANIZATION) for member in self._members(client)}
        for found in self._list(client):
            if found["Labels"].get(labels.ORGANIZATION) not in used:
                try:
                    client.remove_network(found["Id"])
                except APIError as error:
                    # Somebody's own container is in it, or the engine believes so: everything else goes on.
                    log.warning("a network nobody needs stays", network=found["Name"], error=str(error))

    def _list(self, client: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client.networks(filters={"label": self._filters()})
        return found

    def _filters(self) -> list[str]:
        return [f"{key}={value}" for key, value in self._own.items()]

    def _name(self, organization: str) -> str:
        return f"{self._prefix}-{organization}"

    def _bridge(self, organization: str) -> str:
        # 15 characters at most; two nodes on one machine must not meet.
        digest = hashlib.sha256(f"{self._own[labels.NODE]}/{organization}".encode()).hexdigest()
        return f"{self._prefix}{digest}"[:15]

    def _taken(self, client: Any) -> list[IPv4Network]:
        taken = routes_of(_ROUTES.read_text())
        for found in client.networks():
            for config in (found.get("IPAM") or {}).get("Config") or ():
                if ":" not in config.get("Subnet", ":"):
                    taken.append(IPv4Network(config["Subnet"]))
        return taken

    def _create(self, client: Any, network: Network, organization: str) -> None:
        from docker.types import IPAMConfig, IPAMPool

        client.create_network(
            network.name,
            driver="bridge",
            check_duplicate=True,
            ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=str(network.subnet))]),
            labels={**self._own, labels.ORGANIZATION: organization},
            options={
                "com.docker.network.bridge.name": network.bridge,
                "com.docker.network.bridge.enable_icc": "true",
                # The way to the internet is the firewall's: one mechanism, asserted again and again.
                "com.docker.network.bridge.enable_ip_masquerade": "false",
            },
        )


@contextmanager
def _sparing(network: str) -> Iterator[None]:
    """What is wrong with one is tried again with the next repair, and stops no other and no packet rules."""
    from docker.errors import APIError

    try:
        yield
    except APIError as error:
        log.warning("a network is not in order", network=network, error=str(error))


def _network(found: dict[str, Any]) -> Network:
    return Network(
        found["Name"],
        IPv4Network(found["IPAM"]["Config"][0]["Subnet"]),
        found["Options"]["com.docker.network.bridge.name"],
    )
