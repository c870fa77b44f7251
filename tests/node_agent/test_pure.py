"""The small decisions: addresses, labels, packet rules, route files."""

import json
from datetime import UTC
from ipaddress import IPv4Address, IPv4Network

import pytest
from contracts.errors import InvalidInput, ProviderFailed
from contracts.ids import new_id
from contracts.workload import HealthCheck, Slot
from hypothesis import given
from hypothesis import strategies as st
from node_agent import shell
from node_agent.addresses import free_address, free_subnet, routes_of
from node_agent.departures import connected
from node_agent.engine import Identity
from node_agent.firewall import resolvers_in
from node_agent.firewall_rules import Policy, render, render_ipv6
from node_agent.labels import identity_from, labels_of
from node_agent.routes_file import (
    Served,
    digest,
    hostnames_in,
    is_hostname,
    render_common,
    shard,
    shards_of,
)
from node_agent.routes_file import render as render_routes

from tests.node_agent.conftest import spec

POOL = IPv4Network("10.224.0.0/12")


# --- addresses ---------------------------------------------------------------------------------------------


def test_a_subnet_touches_nothing() -> None:
    taken = [IPv4Network("10.224.0.0/24"), IPv4Network("10.224.1.128/25"), IPv4Network("172.17.0.0/16")]
    small = IPv4Network("10.224.0.0/22")
    assert {free_subnet(small, 24, taken, owner) for owner in "abcdefgh"} == {
        IPv4Network("10.224.2.0/24"),
        IPv4Network("10.224.3.0/24"),
    }


def test_a_pool_that_is_used_up_says_what_to_do() -> None:
    with pytest.raises(ProviderFailed, match="NODE_AGENT_NETWORK_POOL"):
        free_subnet(POOL, 24, [IPv4Network("10.0.0.0/8")], "a")


def test_many_more_organizations_than_docker_has_pools_for() -> None:
    taken: list[IPv4Network] = []
    for number in range(200):
        taken.append(free_subnet(POOL, 24, taken, f"org{number}"))
    assert not any(a.overlaps(b) for n, a in enumerate(taken) for b in taken[:n])


def test_what_one_leaves_is_not_the_next_ones_at_once() -> None:
    mine = free_subnet(POOL, 24, [], "org_mine")
    assert free_subnet(POOL, 24, [], "org_mine") == mine
    assert free_subnet(POOL, 24, [], "org_other") != mine
    assert free_address(mine, [], "ins_a") != free_address(mine, [], "ins_b")


@given(st.sets(st.integers(0, 15)), st.text())
def test_an_address_is_given_once_and_never_the_gateways(used: set[int], owner: str) -> None:
    subnet = IPv4Network("10.224.3.0/28")
    taken = {subnet[number] for number in used}
    if len(used - {0, 1, 15}) == 13:
        with pytest.raises(ProviderFailed, match="no address is left"):
            free_address(subnet, taken, owner)
        return
    given_out = free_address(subnet, taken, owner)
    assert given_out in subnet
    assert given_out not in taken | {subnet[0], subnet[1], subnet[15]}


def test_routes_of_the_kernel() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "x\t01A9FEA9\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n"
    )
    assert routes_of(table) == [IPv4Network("172.17.0.0/16"), IPv4Network("169.254.169.1/32")]


def test_open_connections_to_an_instance() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
        "   1: 0100E00A:9C40 0200E00A:1F90 01 00000000:00000000 00:00000000 00000000\n"
        "   2: 0100E00A:9C41 0300E00A:1F90 06 00000000:00000000 00:00000000 00000000\n"
    )
    assert connected("10.224.0.2:8080", table)
    assert not connected("10.224.0.2:8081", table)
    assert not connected("10.224.0.3:8080", table)


# --- labels ------------------------------------------------------------------------------------------------

identities = st.builds(
    Identity,
    instance=st.builds(lambda: new_id("ins")),
    workload=st.builds(lambda: new_id("app")),
    organization=st.builds(lambda: new_id("org")),
    slot=st.builds(Slot, process=st.sampled_from(["web", "worker"]), index=st.integers(0, 99)),
    generation=st.integers(1, 10**9),
    deployment=st.none() | st.builds(lambda: new_id("dep")),
    fingerprint=st.text("0123456789abcdef", min_size=16, max_size=16),
    rate=st.just(spec().rate),
    started_at=st.datetimes(timezones=st.just(UTC)),
    port=st.integers(1, 65535),
    health=st.builds(HealthCheck, kind=st.sampled_from(["tcp", "http"]), path=st.text("/ab\"'%", min_size=1)),
    grace_seconds=st.floats(0, 300),
)


@given(identities)
def test_labels_are_all_it_takes(identity: Identity) -> None:
    labels = labels_of(identity)
    assert all(isinstance(value, str) for value in labels.values())
    assert identity_from(labels) == identity


@given(identities, st.data())
def test_labels_somebody_has_changed_are_refused(identity: Identity, data: st.DataObject) -> None:
    labels = labels_of(identity)
    # A container from before these were always said.
    labels.pop("berth.deployment")
    labels.pop("berth.job")
    del labels[data.draw(st.sampled_from(sorted(labels)))]
    with pytest.raises(InvalidInput):
        identity_from(labels)


# --- packet rules ------------------------------------------------------------------------------------------

POLICY = Policy(
    prefix="berth",
    pool=POOL,
    resolvers=(IPv4Address("192.0.2.53"),),
    allowed_networks=(IPv4Network("10.9.0.0/16"),),
    allowed_host_ports=(443,),
)
FRESH = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A DOCKER-USER -j RETURN
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
COMMIT
"""
GOLDEN = """*filter
:BERTH-INPUT - [0:0]
:BERTH-FORWARD - [0:0]
-A BERTH-INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A BERTH-INPUT -d 192.0.2.53 -p udp --dport 53 -j ACCEPT
-A BERTH-INPUT -d 192.0.2.53 -p tcp --dport 53 -j ACCEPT
-A BERTH-INPUT -p tcp --dport 443 -j ACCEPT
-A BERTH-INPUT -j DROP
-A BERTH-FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A BERTH-FORWARD -i berth1 -o berth1 -j ACCEPT
-A BERTH-FORWARD -i berth2 -o berth2 -j ACCEPT
-A BERTH-FORWARD -o berth+ -j DROP
-A BERTH-FORWARD -d 192.0.2.53 -p udp --dport 53 -j ACCEPT
-A BERTH-FORWARD -d 192.0.2.53 -p tcp --dport 53 -j ACCEPT
-A BERTH-FORWARD -d 10.9.0.0/16 -j ACCEPT
-A BERTH-FORWARD -d 0.0.0.0/8 -j DROP
-A BERTH-FORWARD -d 10.0.0.0/8 -j DROP
-A BERTH-FORWARD -d 100.64.0.0/10 -j DROP
-A BERTH-FORWARD -d 127.0.0.0/8 -j DROP
-A BERTH-FORWARD -d 168.63.129.16/32 -j DROP
-A BERTH-FORWARD -d 169.254.0.0/16 -j DROP
-A BERTH-FORWARD -d 172.16.0.0/12 -j DROP
-A BERTH-FORWARD -d 192.0.0.0/24 -j DROP
-A BERTH-FORWARD -d 192.168.0.0/16 -j DROP
-A BERTH-FORWARD -d 198.18.0.0/15 -j DROP
-A BERTH-FORWARD -d 224.0.0.0/4 -j DROP
-A BERTH-FORWARD -d 240.0.0.0/4 -j DROP
-A BERTH-FORWARD -j ACCEPT
-I INPUT 1 -i berth+ -j BERTH-INPUT
-I DOCKER-USER 1 -i berth+ -j BERTH-FORWARD
-I DOCKER-USER 2 -o berth+ -j BERTH-FORWARD
COMMIT
*nat
:BERTH-NAT - [0:0]
-A BERTH-NAT ! -o berth+ -j MASQUERADE
-I POSTROUTING 1 -s 10.224.0.0/12 -j BERTH-NAT
COMMIT
"""


def test_rules_on_a_fresh_machine() -> None:
    assert render(POLICY, ["berth2", "berth1"], FRESH) == GOLDEN


def test_jumps_in_place_are_left_in_place() -> None:
    settled = FRESH.replace(
        "-A DOCKER-USER -j RETURN",
        "-A INPUT -i berth+ -j BERTH-INPUT\n"
        "-A DOCKER-USER -i berth+ -j BERTH-FORWARD\n"
        "-A DOCKER-USER -o berth+ -j BERTH-FORWARD\n"
        "-A DOCKER-USER -j RETURN",
    ).replace(
        ":POSTROUTING ACCEPT [0:0]", ":POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.224.0.0/12 -j BERTH-NAT"
    )
    again = render(POLICY, ["berth1"], settled)
    assert "-I " not in again
    assert "-D " not in again


def test_a_rule_before_ours_is_put_behind() -> None:
    saved = FRESH.replace(
        "-A DOCKER-USER -j RETURN",
        "-A INPUT -j ACCEPT\n-A INPUT -i berth+ -j BERTH-INPUT\n-A DOCKER-USER -j RETURN",
    )
    lines = render(POLICY, [], saved).splitlines()
    assert lines.index("-D INPUT -i berth+ -j BERTH-INPUT") < lines.index(
        "-I INPUT 1 -i berth+ -j BERTH-INPUT"
    )


def test_a_machine_whose_rules_were_flushed_gets_the_way_to_them_again() -> None:
    flushed = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\nCOMMIT\n*nat\nCOMMIT\n"
    rules = render(POLICY, [], flushed)
    assert ":DOCKER-USER - [0:0]" in rules
    assert "-I FORWARD 1 -j DOCKER-USER" in rules


def test_rules_for_ipv6_shut_the_bridges_and_nothing_else() -> None:
    fresh = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
    assert render_ipv6(POLICY, fresh) == (
        "*filter\n"
        ":BERTH-DROP - [0:0]\n"
        "-A BERTH-DROP -j DROP\n"
        "-I INPUT 1 -i berth+ -j BERTH-DROP\n"
        "-I FORWARD 1 -i berth+ -j BERTH-DROP\n"
        "-I FORWARD 2 -o berth+ -j BERTH-DROP\n"
        "COMMIT\n"
    )
    jumps = "".join(f"-A {rule} berth+ -j BERTH-DROP\n" for rule in ("INPUT -i", "FORWARD -i", "FORWARD -o"))
    assert "-I " not in render_ipv6(POLICY, fresh.replace("-A FORWARD", f"{jumps}-A FORWARD"))
    # What the engine has put before them since is put behind.
    again = render_ipv6(POLICY, fresh.replace("COMMIT", f"{jumps}COMMIT"))
    assert "-D FORWARD -i berth+ -j BERTH-DROP\n" in again
    assert "-I FORWARD 1 -i berth+ -j BERTH-DROP\n" in again
    assert "-I INPUT" not in again


def test_name_servers_of_the_machine() -> None:
    text = "# made by hand\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\nsearch a.b\n"
    assert resolvers_in(text) == (IPv4Address("10.0.0.2"),)


# --- route files -------------------------------------------------------------------------------------------

SERVED = Served("app_1", ("shop.example.com", "www.shop.example.com"), ("10.224.0.3:8080", "10.224.0.2:8080"))


def test_the_file_of_a_workload() -> None:
    assert json.loads(render_routes(SERVED)) == {
        "http": {
            "routers": {
                "app_1-confirm": {
                    "rule": "Path(`/app_1`)",
                    "parentRefs": ["confirm"],
                    "middlewares": ["app_1-confirm"],
                    "service": "noop@internal",
                },
                "app_1-shop.example.com": {
                    "rule": "Host(`shop.example.com`)",
                    "parentRefs": ["shard-sh"],
                    "middlewares": ["retry"],
                    "service": "app_1",
                },
                "app_1-www.shop.example.com": {
                    "rule": "Host(`www.shop.example.com`)",
                    "parentRefs": ["shard-www.sh"],
                    "middlewares": ["retry"],
                    "service": "app_1",
                },
            },
            "services": {
                "app_1": {
                    "loadBalancer": {
                        "servers": [{"url": "http://10.224.0.2:8080"}, {"url": "http://10.224.0.3:8080"}],
                        "serversTransport": "instances",
                    }
                }
            },
            "middlewares": {
                "app_1-confirm": {"headers": {"customResponseHeaders": {"X-Berth-Routes": digest(SERVED)}}}
            },
        }
    }


def test_what_they_all_hang_from() -> None:
    whole = json.loads(render_common("secret.invalid", ["sh", "www.sh", "a."], "PEM"))
    assert whole["tls"]["stores"]["default"]["defaultCertificate"] == {"certFile": "PEM", "keyFile": "PEM"}
    common = whole["http"]
    assert common["routers"].pop("metrics") == {
        "rule": "Path(`/metrics`)",
        "parentRefs": ["confirm"],
        "service": "prometheus@internal",
    }
    rules = {name: router["rule"] for name, router in common["routers"].items() if "nobody" not in name}
    assert rules == {
        "confirm": "Host(`secret.invalid`)",
        "shard-a.": "HostRegexp(`^a[.]`)",
        "shard-sh": "HostRegexp(`^sh`)",
        "shard-www.sh": "HostRegexp(`^www[.]sh`)",
    }
    priorities = {name: common["routers"][name]["priority"] for name in rules}
    assert priorities["confirm"] > priorities["shard-www.sh"] > priorities["shard-sh"]
    # No parent without a child.
    parents = {ref for router in common["routers"].values() for ref in router.get("parentRefs", ())}
    assert parents == set(rules)


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?", fullmatch=True)
hostnames = st.lists(labels, min_size=1, max_size=4).map(".".join)


@given(st.sets(hostnames, max_size=6))
def test_every_hostname_is_below_its_parent_and_read_back(names: set[str]) -> None:
    text = render_routes(Served("app_1", tuple(names), ()))
    assert set(hostnames_in(text)) == names
    assert shards_of(names) == {shard(name) for name in names}
    assert all(name.startswith(shard(name)) for name in names)


def test_the_digest_says_what_is_served_and_in_no_order() -> None:
    turned = Served(SERVED.workload, SERVED.hostnames[::-1], SERVED.addresses[::-1])
    assert digest(turned) == digest(SERVED)
    assert digest(Served(SERVED.workload, SERVED.hostnames, SERVED.addresses[:1])) != digest(SERVED)


POISON = [
    "",
    "a`) || Host(`b",
    "{{ env `HOME` }}",
    "UPPER.example",
    "*.example.com",
    "-a.example",
    "a..b",
    "a\n",
]


@pytest.mark.parametrize("hostname", POISON)
def test_no_other_hostname_gets_into_a_file(hostname: str) -> None:
    assert not is_hostname(hostname)
    with pytest.raises(InvalidInput, match="not a hostname"):
        render_routes(Served("app_1", (hostname,), ()))


@pytest.mark.parametrize(
    "address", ["", "example.com:80", "10.0.0.1", "10.0.0.1:80/x", "[::1]:80", "{{.}}:80"]
)
def test_no_other_address_gets_into_a_file(address: str) -> None:
    with pytest.raises(InvalidInput, match="not an address"):
        render_routes(Served("app_1", (), (address,)))


@pytest.mark.parametrize(
    ("command", "plain"),
    [
        ("gunicorn app:app --bind 0.0.0.0:$PORT", True),
        ("  python3 'my app.py'\n", True),
        ("cd app && npm start", False),
        ("A=1 node server.js", False),
        ("exec node server.js", False),
        ("node server.js; true", False),
        ("node $(cat entry)", False),
        ("npm run build\nnpm start", False),
        ("! false", False),
        ("", False),
    ],
)
def test_a_plain_command_takes_the_place_of_its_shell(command: str, plain: bool) -> None:
    assert shell.is_plain(command) is plain
    assert shell.start(command).command == (
        [f"exec {command.strip()}"]
        if plain
        else [f"unset TINI_KILL_PROCESS_GROUP; trap exit INT QUIT TERM\n{command}"]
    )


def test_only_an_image_that_begins_in_a_shell_is_started_otherwise() -> None:
    in_shell = shell.start_of({"Entrypoint": None, "Cmd": ["/bin/sh", "-c", "flask run"]})
    assert (in_shell.entrypoint, in_shell.command) == (["/bin/sh", "-c"], ["exec flask run"])
    own = shell.start_of({"Entrypoint": ["docker-entrypoint.sh"], "Cmd": ["postgres"]})
    assert own == shell.Start()
