import re
from dataclasses import replace

import pytest
from contracts.errors import InvalidInput, Unavailable
from embedded import leftovers
from embedded.engine import Machine, decide, engine_environment

BARE = Machine(
    docker_host=None, answers=False, refuses=False, root=True, installed=False, systemd=False, debian=True
)


@pytest.mark.parametrize(
    ("machine", "step"),
    [
        (replace(BARE, answers=True, root=False), "use"),
        (replace(BARE, answers=True, docker_host="unix:///run/user/1000/docker.sock", root=False), "use"),
        (BARE, "install"),
        (replace(BARE, installed=True), "start"),
        (replace(BARE, installed=True, debian=False), "start"),
        (replace(BARE, installed=True, systemd=True), "systemctl"),
    ],
)
def test_the_way_to_an_engine(machine: Machine, step: str) -> None:
    assert decide(machine) == step


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (replace(BARE, root=False), "no container engine: install Docker Engine (as root"),
        (replace(BARE, debian=False), "no container engine: install Docker Engine (with your system's"),
        (replace(BARE, installed=True, root=False), "is not running: run `sudo systemctl start docker`"),
        (replace(BARE, refuses=True, root=False), "refuses this user: run `sudo usermod -aG docker"),
        (replace(BARE, docker_host="unix:///nowhere"), "no engine answers at DOCKER_HOST=unix:///nowhere"),
        (replace(BARE, docker_host="tcp://10.0.0.1:2375", answers=True), "DOCKER_HOST is tcp://10.0.0.1"),
    ],
)
def test_without_an_engine_one_line_says_what_to_do(machine: Machine, line: str) -> None:
    with pytest.raises((Unavailable, InvalidInput), match=re.escape(line)) as refusal:
        decide(machine)
    assert "\n" not in refusal.value.message


def test_the_engine_is_told_the_proxy_and_no_secret() -> None:
    ours = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "localhost", "BERTH_SECRET": "precious"}
    told = engine_environment(ours)
    assert told["HTTPS_PROXY"] == "http://proxy:3128"
    assert told["no_proxy"] == "localhost"
    assert "BERTH_SECRET" not in told


SAVED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:OPERATOR - [0:0]
-A INPUT -p tcp -m comment --comment "keep: -j DOCKER" -j ACCEPT
-A FORWARD -j DOCKER-USER
-A FORWARD -i br-0123 ! -o br-0123 -j ACCEPT
-A FORWARD -i virbr0 -j ACCEPT
-A DOCKER-USER -j RETURN
-A OPERATOR -o docker0 -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
COMMIT
"""


def test_only_the_engines_own_rules_are_removed() -> None:
    assert leftovers.removals(SAVED, leftovers.ENGINE_CHAINS, ["br-0123", "docker0"]) == [
        ["--table", "filter", "--delete", "FORWARD", "-j", "DOCKER-USER"],
        ["--table", "filter", "--delete", "FORWARD", "-i", "br-0123", "!", "-o", "br-0123", "-j", "ACCEPT"],
        ["--table", "filter", "--delete", "OPERATOR", "-o", "docker0", "-j", "DROP"],
        ["--table", "nat", "--delete", "PREROUTING", "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DOCKER"],
        ["--table", "filter", "--flush", "DOCKER"],
        ["--table", "filter", "--flush", "DOCKER-USER"],
        ["--table", "nat", "--flush", "DOCKER"],
        ["--table", "filter", "--delete-chain", "DOCKER"],
        ["--table", "filter", "--delete-chain", "DOCKER-USER"],
        ["--table", "nat", "--delete-chain", "DOCKER"],
    ]
    assert leftovers.removals(SAVED, ("OPERATOR",)) == [
        ["--table", "filter", "--flush", "OPERATOR"],
        ["--table", "filter", "--delete-chain", "OPERATOR"],
    ]
    assert leftovers.forward_policy(SAVED) == "DROP"
