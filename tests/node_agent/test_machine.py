"""What the node says of its machine, and what it says when the machine cannot keep tenants apart."""

from ipaddress import IPv4Address
from pathlib import Path

import pytest
import structlog
from contracts.errors import Unavailable
from node_agent.app import create
from node_agent.firewall import CannotIsolate, Firewall
from node_agent.firewall_rules import Policy
from node_agent.machine import Machine, Share
from node_agent.settings import NodeAgentSettings

from tests.harness import Harness
from tests.ports.engines import POOL, PREFIX, DockerHands

CPU = "cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 0 0 0 0 0 0 0 0 0 0\n"
MEMORY = "MemTotal: 8192000 kB\nMemFree: 100 kB\nMemAvailable: 2048000 kB\nHugePages_Total: 0\n"


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    (tmp_path / "meminfo").write_text(MEMORY)
    (tmp_path / "loadavg").write_text("1.25 0.80 0.50 1/234 5678\n")
    (tmp_path / "stat").write_text(CPU.format(busy=100, idle=900))
    return tmp_path


def test_usage_is_that_since_the_last_time(proc: Path) -> None:
    machine = Machine(Share(), proc, proc)
    machine.usage()
    (proc / "stat").write_text(CPU.format(busy=175, idle=925))
    used = machine.usage()
    assert (used.cpu_millis, used.memory_mb, used.load) == (3000, 6000, 1.25)
    assert machine.usage().cpu_millis == 0


def test_capacity_is_the_machines_or_the_operators_share_of_it(proc: Path) -> None:
    capacity = Machine(Share(), proc, proc).capacity()
    assert (capacity.cpu_millis, capacity.memory_mb) == (4000, 8000)
    assert capacity.disk_mb > 0
    less = Machine(Share(cpu_millis=1500, memory_mb=9000, disk_mb=1), proc, proc).capacity()
    assert (less.cpu_millis, less.memory_mb, less.disk_mb) == (1500, 8000, 1)


def firewall() -> Firewall:
    return Firewall(Policy(PREFIX, POOL))


def test_name_servers_behind_a_stub_are_those_the_engine_gives_to_instances(tmp_path: Path) -> None:
    stub, upstream = tmp_path / "stub", tmp_path / "upstream"
    rules = Firewall(Policy(PREFIX, POOL), (stub, upstream))
    assert rules.resolvers() == ()
    stub.write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\n")
    assert rules.resolvers() == ()
    upstream.write_text("nameserver 10.1.2.3\nnameserver 192.168.0.1\n")
    assert rules.resolvers() == (IPv4Address("10.1.2.3"), IPv4Address("192.168.0.1"))
    # Where the machine asks somebody else, so do its instances.
    stub.write_text("nameserver 10.0.0.2\n")
    assert rules.resolvers() == (IPv4Address("10.0.0.2"),)


def test_no_iptables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotIsolate, match=r"apt-get install iptables.*NODE_AGENT_FIREWALL=off"):
        firewall().reassert([])


def test_no_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "iptables-save"
    program.write_text("#!/bin/sh\necho 'Permission denied (you must be root)' >&2\nexit 4\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CannotIsolate, match=r"Start the agent as root.*NODE_AGENT_FIREWALL=off"):
        firewall().reassert([])


def test_without_ip6tables_it_goes_on_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("iptables-save", "iptables-restore"):
        (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    rules = firewall()
    with structlog.testing.capture_logs() as said:
        rules.reassert([])
        rules.reassert([])
    assert [entry["event"] for entry in said] == ["no packet rules for IPv6"]
    assert "ip6tables-save is missing" in said[0]["why"]
    # Some have nothing to save, and no error, where the kernel has no such table.
    (tmp_path / "ip6tables-save").symlink_to("/bin/true")
    (tmp_path / "ip6tables-restore").symlink_to("/bin/false")
    program = tmp_path / "ip6tables"
    program.write_text('#!/bin/sh\necho "can\'t initialize ip6tables table" >&2\nexit 3\n')
    program.chmod(0o755)
    rules = firewall()
    with structlog.testing.capture_logs() as said:
        rules.reassert([])
    assert "can't initialize ip6tables table" in said[0]["why"]
    # Where it has one, there have to be rules.
    program.unlink()
    program.symlink_to("/bin/true")
    with pytest.raises(Unavailable, match="ip6tables-restore failed"):
        rules.reassert([])


async def test_an_agent_that_cannot_keep_tenants_apart_does_not_start(
    harness: Harness, docker: DockerHands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = NodeAgentSettings(prefix=PREFIX, network_pool=POOL, routes=tmp_path / "routes")
    service = create(harness.runtime("node-agent"), settings=settings)
    assert service.on_start is not None
    assert service.on_stop is not None
    with pytest.raises(CannotIsolate):
        await service.on_start()
    await service.on_stop()
