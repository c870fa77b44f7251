"""What instances may reach, as chains for `iptables-restore` and `ip6tables-restore`. PURE.

Two user chains decide about every packet to or from a bridge of ours, whatever other rules say after them: an
instance reaches its own organization and the internet, and neither this machine, nor another organization,
nor any private network, nor the address where clouds keep their metadata. No network of ours has IPv6, but
every bridge has an address of its own in it, where whoever writes his own packets would reach this machine.
"""

from collections.abc import Iterable, Mapping
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


# Table -> chain of ours -> its rules.
_Chains = Mapping[str, Mapping[str, list[str]]]
# (table, chain of the kernel or of Docker, the rules that must be its first ones)
_Jump = tuple[str, str, list[str]]


def _jumps(policy: Policy) -> list[_Jump]:
    any_bridge, forward = policy.any_bridge, policy.chain("FORWARD")
    return [
        ("filter", "INPUT", [f"-i {any_bridge} -j {policy.chain('INPUT')}"]),
        ("filter", "FORWARD", [f"-j {_FIRST}"]),
        ("filter", _FIRST, [f"-i {any_bridge} -j {forward}", f"-o {any_bridge} -j {forward}"]),
        ("nat", "POSTROUTING", [f"-s {policy.pool} -j {policy.chain('NAT')}"]),
    ]


def _chains(policy: Policy, bridges: Iterable[str]) -> _Chains:
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
    return _edits(_chains(policy, bridges), _jumps(policy), saved)


def render_ipv6(policy: Policy, saved: str) -> str:
    """The same for `ip6tables-restore`: nothing comes from a bridge of ours, and nothing goes to one."""
    any_bridge, drop = policy.any_bridge, policy.chain("DROP")
    jumps = [
        ("filter", "INPUT", [f"-i {any_bridge} -j {drop}"]),
        ("filter", "FORWARD", [f"-i {any_bridge} -j {drop}", f"-o {any_bridge} -j {drop}"]),
    ]
    # A chain for one rule: whoever takes our rules away knows them by its name.
    return _edits({"filter": {drop: ["-j DROP"]}}, jumps, saved)


def _edits(wanted: _Chains, jumps: Iterable[_Jump], saved: str) -> str:
    current = _parse(saved)
    lines: list[str] = []
    for table, chains in wanted.items():
        present = current.get(table, {})
        firsts = [(chain, rules) for place, chain, rules in jumps if place == table]
        lines.append(f"*{table}")
        # A user chain that is declared here is emptied first, so one that is not ours must not be.
        lines += [f":{chain} - [0:0]" for chain in chains]
        lines += [f":{_FIRST} - [0:0]" for chain, _ in firsts if chain == _FIRST and chain not in present]
        for chain, rules in chains.items():
            lines += [f"-A {chain} {rule}" for rule in rules]
        for chain, rules in firsts:
            lines += _first(chain, rules, present.get(chain, []))
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
