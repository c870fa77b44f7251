"""What an instance on the real engine cannot do: each case also shows that the test would notice.

The world around the machine is a network namespace with the cloud's metadata address and a neighbour in a
private network; no packet leaves this machine.
"""

import asyncio
import fcntl
import io
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from contracts.ids import new_id
from contracts.workload import Limits
from embedded.leftovers import remove_firewall
from node_agent.engine import Instance
from node_agent.firewall_rules import Policy
from node_agent.health import probe

from tests.harness import eventually
from tests.ports.engines import POOL, PREFIX, DockerHands, blueprint, docker_engine, ended

METADATA, NEIGHBOUR, PARTNER = "169.254.169.254", "10.252.7.2", "198.18.7.2"
PORT = 8099
# Not the name of a bridge of ours.
SPACE = LINK = f"w{PREFIX}"

CONNECT = (
    "use IO::Socket::INET; my $s = IO::Socket::INET->new("
    "PeerAddr => $ARGV[0], PeerPort => $ARGV[1], Timeout => 0.7); print $s ? 'reached' : 'not reached'"
)


def ip(*argv: str, check: bool = True) -> None:
    subprocess.run(["ip", *argv], check=check, capture_output=True)


@pytest.fixture(scope="module")
def world() -> Iterator[None]:
    """A neighbour on the machine's network, who serves on the addresses above; and so does the machine."""
    with Path("/tmp/berth-tests-world.lock").open("w") as lock:
        # The addresses are the machine's: one run of the tests at a time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with neighbour():
            yield


@contextmanager
def neighbour() -> Iterator[None]:
    for left in Path("/run/netns").glob("wt*"):
        if ended(left.name[1:]):
            ip("netns", "del", left.name)
    ip("netns", "add", SPACE)
    ip("link", "add", LINK, "type", "veth", "peer", "name", "in", "netns", SPACE)
    ip("addr", "add", "10.252.7.1/30", "dev", LINK)
    ip("link", "set", LINK, "up")
    for address in (f"{NEIGHBOUR}/30", f"{METADATA}/32", f"{PARTNER}/32"):
        ip("-n", SPACE, "addr", "add", address, "dev", "in")
    ip("-n", SPACE, "link", "set", "in", "up")
    ip("-n", SPACE, "route", "add", "default", "via", "10.252.7.1")
    for address in (METADATA, PARTNER):
        ip("route", "add", f"{address}/32", "via", NEIGHBOUR)
    serve = [sys.executable, "-c", _SERVE, str(PORT)]
    servers = [
        subprocess.Popen(argv, stdout=subprocess.PIPE)
        for argv in (["ip", "netns", "exec", SPACE, *serve], serve)
    ]
    try:
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline() == b"listening\n"
        yield
    finally:
        for server in servers:
            server.kill()
            server.communicate()
        ip("link", "del", LINK, check=False)
        ip("netns", "del", SPACE, check=False)


_SERVE = """
import socket, sys
listener = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("listening", flush=True)
while True:
    listener.accept()[0].close()
"""


@dataclass
class Tenant:
    hands: DockerHands
    instance: Instance

    @property
    def name(self) -> str:
        return self.instance.identity.instance

    async def run(self, *argv: str) -> tuple[int, str]:
        return await asyncio.to_thread(self.hands.run, self.name, *argv)

    async def perl(self, program: str, *arguments: object) -> str:
        return (await self.run("perl", "-e", program, *(str(a) for a in arguments)))[1]

    async def reaches(self, address: str, port: int = PORT) -> bool:
        answer = await self.perl(CONNECT, address, port)
        assert answer in ("reached", "not reached"), answer
        return answer == "reached"

    async def answers(self) -> None:
        identity = self.instance.identity

        async def look() -> bool:
            return await probe(identity.health, self.instance.address, identity.port) is None

        await eventually(look, what="an answer")


async def tenant(hands: DockerHands, **changes: object) -> Tenant:
    instance = await hands.engine.create(blueprint(hands, **changes))
    await hands.engine.start(instance.identity.instance)
    made = Tenant(hands, instance)
    await made.answers()
    return made


@pytest.fixture(scope="module")
async def one(docker: DockerHands) -> AsyncIterator[Tenant]:
    """One tenant for the cases that leave it as it was."""
    made = await tenant(docker, limits=Limits(cpu_millis=250, memory_mb=64, disk_mb=64, pids=32))
    yield made
    await docker.engine.remove(made.name)


@pytest.mark.promise("R14.1", "R14.3")
async def test_its_processes_have_no_rights(one: Tenant) -> None:
    for process in ("1", "self"):
        status = dict(
            line.split(":\t", 1)
            for line in (await one.run("cat", f"/proc/{process}/status"))[1].splitlines()
            if ":\t" in line
        )
        assert status["Uid"].split() == ["100000"] * 4
        assert status["Gid"].split() == ["100000"] * 4
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
    assert one.hands.inspect(one.name)["HostConfig"]["Privileged"] is False
    assert (await one.run("touch", "/etc/passwd"))[0] != 0


@pytest.mark.promise("R14.2")
async def test_memory_beyond_the_plan_kills_and_does_not_swap(one: Tenant) -> None:
    host = one.hands.inspect(one.name)["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 64 * 2**20
    assert (await one.run("perl", "-e", "my $x = 'a' x (24 << 20); print 'fits'")) == (0, "fits")
    code, output = await one.run("perl", "-e", "my $x = 'a' x (200 << 20); print 'fits'")
    assert (code, output) == (137, "")


@pytest.mark.promise("R14.2")
async def test_processes_beyond_the_plan_are_refused(one: Tenant) -> None:
    made = await one.perl(
        "my $n = 0; for (1 .. 100) { my $p = fork; last unless defined $p; "
        "if ($p == 0) { sleep 2; exit } $n++ } kill 9, 0 if 0; print $n"
    )
    assert 10 < int(made) < 32


@pytest.mark.promise("K5")
async def test_where_all_want_more_than_there_is_each_has_what_it_was_promised(docker: DockerHands) -> None:
    cores = os.cpu_count() or 1
    limits = Limits(cpu_millis=1000 * cores, memory_mb=128, disk_mb=64, pids=64)
    requests = ({"cpu_request_millis": 200, "memory_request_mb": 32}, {"cpu_request_millis": 800})
    made = [await tenant(docker, limits=limits.model_copy(update=request)) for request in requests]
    try:
        told = [
            {name: host[name] for name in ("CpuQuota", "Memory", "CpuShares", "MemoryReservation")}
            for host in (docker.inspect(one.name)["HostConfig"] for one in made)
        ]
        most = {"CpuQuota": cores * 100_000, "Memory": 128 * 2**20}
        assert told == [
            {**most, "CpuShares": 204, "MemoryReservation": 32 * 2**20},
            {**most, "CpuShares": 819, "MemoryReservation": 128 * 2**20},
        ]
        # More processes than there are cores, and all of them in the same seconds.
        begin = int(time.time()) + 3
        burn = (
            f"fork for 1 .. {cores.bit_length()}; select undef, undef, undef, 0.01 while time < {begin}; "
            f"1 while time < {begin + 5}; 1 while wait > 0"
        )
        await asyncio.gather(*(one.perl(burn) for one in made))
        small, large = [(await docker.engine.usage(one.name)).cpu_seconds for one in made]
        # Four to one; what else this machine does falls on its cores unevenly.
        assert 1.7 < large / small < 7
    finally:
        for one in made:
            await docker.engine.remove(one.name)


@pytest.mark.promise("R14.2")
async def test_cpu_beyond_the_plan_is_not_given(one: Tenant) -> None:
    before = (await one.hands.engine.usage(one.name)).cpu_seconds
    await one.perl("my $end = time + 2; 1 while time < $end")
    used = (await one.hands.engine.usage(one.name)).cpu_seconds - before
    # A quarter of a core for at most two seconds, and what the start of the command took.
    assert 0.1 < used < 0.8


async def test_a_plan_may_have_more_cpu_than_the_machine(docker: DockerHands) -> None:
    millis = 1000 * ((os.cpu_count() or 1) + 1)
    made = await tenant(docker, limits=Limits(cpu_millis=millis, memory_mb=64, disk_mb=64, pids=32))
    await docker.engine.remove(made.name)


async def test_home_and_tmp_can_be_written_up_to_their_size(one: Tenant) -> None:
    assert (await one.run("/bin/sh", "-c", "echo x > $HOME/file && echo x > /tmp/file && cat /tmp/file"))[
        1
    ] == "x\n"
    assert (await one.run("dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=8"))[0] == 0
    assert (await one.run("dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=32"))[0] != 0
    assert (await one.run("rm", "/tmp/big"))[0] == 0


PLENTY = 2**30
# Deeper than a path can be long.
DIG = "for (1 .. 3000) { mkdir 'd'; chdir 'd' or die $! } open my $f, '>', 'f'; print $f 'x' x (4 << 20)"


@pytest.fixture(scope="module")
async def writer(docker: DockerHands) -> AsyncIterator[Tenant]:
    """One who may write below `/layer`, and into a volume of its image."""
    dockerfile = f"FROM {docker.image}\nRUN mkdir --mode 777 /layer /unmeasured\nVOLUME /unmeasured\n"
    image = docker.image.replace("answer", "unmeasured")
    for line in docker.client.build(fileobj=io.BytesIO(dockerfile.encode()), tag=image, rm=True, decode=True):
        assert "error" not in line, line
    made = await tenant(docker, image=image)
    try:
        yield made
    finally:
        await docker.engine.remove(made.name)
        docker.client.remove_image(image, force=True)


@pytest.mark.promise("R14.2")
@pytest.mark.parametrize("place", ["/layer", "/unmeasured"])
async def test_whatever_it_writes_counts(writer: Tenant, place: str) -> None:
    async def written() -> int:
        return await writer.hands.engine.written(writer.name, PLENTY)

    before = await written()
    assert before < 2**20
    await writer.run("dd", "if=/dev/zero", f"of={place}/big", "bs=1M", "count=4")
    assert await written() >= 4 * 2**20
    await writer.run("rm", f"{place}/big")
    # Files of no size take what else there is only so many of.
    empty = "chdir shift; for (1 .. 2000) { open my $f, '>', \"f$_\" } print 'made'"
    assert await writer.perl(empty, place) == "made"
    assert await written() - before >= 2000 * 4096
    await writer.run("/bin/sh", "-c", f"rm {place}/f*")
    # What cannot be measured is too much.
    await writer.perl(f"chdir shift; {DIG}", place)
    assert await written() > PLENTY
    await writer.run("rm", "-rf", f"{place}/d")
    assert await written() < 2**20


@pytest.mark.promise("R14.4")
async def test_another_organization_is_out_of_reach_and_the_own_is_not(
    docker: DockerHands, one: Tenant
) -> None:
    sister = await tenant(docker, organization=one.instance.identity.organization)
    stranger = await tenant(docker)
    try:
        assert await one.reaches(sister.instance.address, 8080)
        assert not await one.reaches(stranger.instance.address, 8080)
        assert not await stranger.reaches(one.instance.address, 8080)
    finally:
        for other in (sister, stranger):
            await docker.engine.remove(other.name)


async def test_neither_the_machine_nor_a_private_network_nor_metadata_is_in_reach(
    docker: DockerHands, one: Tenant, world: None
) -> None:
    gateway = one.instance.address.rpartition(".")[0] + ".1"
    outside = {METADATA, NEIGHBOUR, PARTNER}
    machine = {gateway, "10.252.7.1"}

    async def reached() -> set[str]:
        asked = sorted(outside | machine)
        answers = await asyncio.gather(*(one.reaches(address) for address in asked))
        return {address for address, answer in zip(asked, answers, strict=True) if answer}

    assert await reached() == set()
    # The rules are what keeps it from them: without the machine's, its own services are open.
    await asyncio.to_thread(remove_firewall, (f"{PREFIX.upper()}-",))
    assert await reached() >= machine
    # Somebody removed the rules; the next reconcile brings them back.
    await docker.engine.reassert()
    assert await reached() == set()
    # An operator may open a network, and a port of the machine; nothing else opens with it.
    policy = Policy(
        PREFIX, POOL, allowed_networks=(IPv4Network(f"{PARTNER}/32"),), allowed_host_ports=(PORT,)
    )
    opened = docker_engine(policy=policy)
    await opened.reassert()
    assert await reached() == {PARTNER} | machine
    await opened.close()
    await docker.engine.reassert()
    assert await reached() == set()


async def test_a_bridge_taken_away_comes_back_with_the_same_addresses(
    docker: DockerHands, one: Tenant
) -> None:
    sister = await tenant(docker, organization=one.instance.identity.organization)
    network = await asyncio.to_thread(
        docker.client.networks, filters={"label": f"berth.organization={one.instance.identity.organization}"}
    )
    bridge = network[0]["Options"]["com.docker.network.bridge.name"]
    ip("link", "del", bridge)
    await docker.engine.reassert()
    await one.answers()
    await sister.answers()
    assert await one.reaches(sister.instance.address, 8080)
    await docker.engine.remove(sister.name)


@pytest.mark.parametrize("left", ["one of two", "an empty network", "no network"])
async def test_a_repair_that_ended_halfway_is_ended_by_the_next(
    docker: DockerHands, one: Tenant, left: str
) -> None:
    organization = one.instance.identity.organization
    sister = await tenant(docker, organization=organization)
    [network] = docker.client.networks(filters={"label": f"berth.organization={organization}"})
    cut_off = (one,) if left == "one of two" else (one, sister)
    for member in cut_off:
        docker.client.disconnect_container_from_network(f"{PREFIX}-{member.name}", network["Id"], force=True)
    if left == "one of two":
        ip("link", "del", network["Options"]["com.docker.network.bridge.name"])
    elif left == "no network":
        docker.client.remove_network(network["Id"])
    try:
        await docker.engine.reassert()
        await one.answers()
        await sister.answers()
        assert await one.reaches(sister.instance.address, 8080)
    finally:
        await docker.engine.remove(sister.name)


async def test_two_nodes_on_one_machine_do_not_see_each_other(docker: DockerHands, one: Tenant) -> None:
    other = docker_engine(node="other")
    try:
        assert await other.instances() == ()
        await other.reassert()
        await one.answers()
    finally:
        await other.close()


async def test_the_network_of_an_organization_goes_with_its_last_instance(docker: DockerHands) -> None:
    organization = new_id("org")

    def networks() -> int:
        return len(docker.client.networks(filters={"label": f"berth.organization={organization}"}))

    made = [await docker.engine.create(blueprint(docker, organization=organization)) for _ in range(2)]
    assert networks() == 1
    await docker.engine.remove(made[0].identity.instance)
    await docker.engine.reassert()
    assert networks() == 1
    await docker.engine.remove(made[1].identity.instance)
    await docker.engine.reassert()
    assert networks() == 0
