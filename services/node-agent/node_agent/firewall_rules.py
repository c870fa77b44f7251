"""What instances may reach, as chains for `iptables-restore`. PURE.

Two user chains decide about every packet to or from a bridge of ours, whatever other rules say after them: an
instance reaches its own organization and the internet, and neither this machine, nor another organization,
nor any private network, nor the address where clouds keep their metadata.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

# Not the internet: private, carrier-grade NAT, link-local (cloud metadata), loopback, multicast, reserved;
# and where Azure gives a machine its credentials, which looks like any other address.
PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
_FIRST = "DOCKER-USER"  # the chain that Docker promises to ask before its own


@dataclass(frozen=True, slots=True)
class Policy:
    # Begins the name of every bridge, and in capitals of every chain.
    prefix: str
    pool: IPv4Network
    resolvers: tuple[IPv4Address, ...] = ()
    allowed_networks: tuple[IPv4Network, ...] = ()
    allowed_host_ports: tuple[int, ...] = ()

    @property
    def any_bridge(self) -> str:
        return f"{self.prefix}+"

    def chain(self, name: str) -> str:
        return f"{self.prefix.upper()}-{name}"


def _jumps(policy: Policy) -> list[tuple[str, str, list[str]]]:
    """(table, chain of the kernel or of Docker, the rules that must be its first ones)"""
    any_bridge, forward = policy.any_bridge, policy.chain("FORWARD")
    return [
        ("filter", "INPUT", [f"-i {any_bridge} -j {policy.chain('INPUT')}"]),
        ("filter", "FORWARD", [f"-j {_FIRST}"]),
        ("filter", _FIRST, [f"-i {any_bridge} -j {forward}", f"-o {any_bridge} -j {forward}"]),
        ("nat", "POSTROUTING", [f"-s {policy.pool} -j {policy.chain('NAT')}"]),
    ]


def _chains(policy: Policy, bridges: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    known = "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
    names = [
        f"-d {resolver} -p {protocol} --dport 53 -j ACCEPT"
        for resolver in policy.resolvers
        for protocol in ("udp", "tcp")
    ]
    ports = [f"-p tcp --dport {port} -j ACCEPT" for port in policy.allowed_host_ports]
    return {
        "filter": {
            policy.chain("INPUT"): [known, *names, *ports, "-j DROP"],
            policy.chain("FORWARD"): [
                known,
                *(f"-i {bridge} -o {bridge} -j ACCEPT" for bridge in sorted(bridges)),
                f"-o {policy.any_bridge} -j DROP",
                *names,
                *(f"-d {network} -j ACCEPT" for network in policy.allowed_networks),
                *(f"-d {network} -j DROP" for network in PRIVATE),
                "-j ACCEPT",
            ],
        },
        "nat": {policy.chain("NAT"): [f"! -o {policy.any_bridge} -j MASQUERADE"]},
    }


def render(policy: Policy, bridges: Iterable[str], saved: str) -> str:
    """Input for `iptables-restore --noflush` that brings what `iptables-save` printed to the policy."""
    current = _parse(saved)
    lines: list[str] = []
    for table, chains in _chains(policy, bridges).items():
        lines.append(f"*{table}")
        # A user chain that is declared here is emptied first, so one that is not ours must not be.
        lines += [f":{chain} - [0:0]" for chain in chains]
        if table == "filter" and _FIRST not in current.get(table, {}):
            lines.append(f":{_FIRST} - [0:0]")
        for chain, rules in chains.items():
            lines += [f"-A {chain} {rule}" for rule in rules]
        for jump_table, chain, wanted in _jumps(policy):
            if jump_table == table:
                lines += _first(chain, wanted, current.get(table, {}).get(chain, []))
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def _first(chain: str, wanted: list[str], present: list[str]) -> list[str]:
    """Edits that make `wanted` the first rules of a chain that is not ours; none when they already are."""
    if present[: len(wanted)] == wanted:
        return []
    removals = [f"-D {chain} {rule}" for rule in present if rule in wanted]
    return removals + [f"-I {chain} {place} {rule}" for place, rule in enumerate(wanted, 1)]


def _parse(saved: str) -> dict[str, dict[str, list[str]]]:
    tables: dict[str, dict[str, list[str]]] = {}
    table: dict[str, list[str]] = {}
    for line in saved.splitlines():
        if line.startswith("*"):
            table = tables.setdefault(line[1:], {})
        elif line.startswith(":"):
            table.setdefault(line[1:].split(" ", 1)[0], [])
        elif line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            table.setdefault(chain, []).append(rule)
    return tables
