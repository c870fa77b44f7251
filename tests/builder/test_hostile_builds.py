"""Builds that mean harm, on the real engine: each meets its limit, and nobody else notices.

The rules of the packet filter are those the node agent keeps on every machine that builds.
"""

import asyncio
import io
import os
import shutil
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from builder.docker_builder import DockerBuilder
from builder.engine_api import EngineApi
from builder.image_builder import StepFailed
from contracts.errors import ProviderFailed
from contracts.workload import BuildFailed, BuildResult, BuildSucceeded
from embedded.leftovers import remove_firewall
from node_agent.firewall import Firewall
from node_agent.firewall_rules import Policy

from tests.builder.gateway import Gateway
from tests.harness import SECRET, eventually
from tests.ports.image_builders import BASE, URL, Said, clear, context, docker_builder, new_order

PREFIX = "bldevil"
DISK_MB = 100
POLICY = Policy(PREFIX, IPv4Network("10.253.0.0/16"))
METADATA = "169.254.169.254"
# What it can reach, on each line; refused is reached, for somebody answered.
SCAN = (
    "use IO::Socket::INET; use Errno; $| = 1; for (@ARGV) { fork and next; "
    "$s = IO::Socket::INET->new(PeerAddr => $_, Timeout => 1); "
    "print qq(reached $_\\n) if $s || $!{ECONNREFUSED}; exit } 1 while wait != -1; print qq(scanned\\n)"
)
FILL = "for i in $(seq 20); do head -c 20000000 /dev/zero > {}/$i; sleep 0.1; done; sleep 60"

# A path that is too long to be walked through.
DIG = "perl -e 'for (1 .. 3000) { mkdir q(d); chdir q(d) or die $! }'"


@pytest.fixture(scope="module")
async def api() -> EngineApi:
    return EngineApi(URL)


@pytest.fixture(scope="module")
async def docker(api: EngineApi) -> AsyncIterator[DockerBuilder]:
    builder = docker_builder(PREFIX, pids=100)
    await clear(builder, api)
    await builder.ensure_network()
    firewall = Firewall(POLICY)
    await asyncio.to_thread(firewall.reassert, ())
    try:
        yield builder
    finally:
        await clear(builder, api)
        remove_firewall((POLICY.chain(""),))


async def build(
    docker: DockerBuilder, *lines: str, said: Said | None = None, files: dict[str, str] | None = None
) -> Said:
    said = said or Said()
    # Not from the cache: whatever is tried is tried now.
    text = "\n".join((f"FROM {BASE}", f"ENV TRY={time.time_ns()}", *lines)) + "\n"
    order = new_order(disk_mb=DISK_MB, cache=None)
    await docker.build(order, context({"Dockerfile": text, **(files or {})}), "Dockerfile", (BASE,), said)
    return said


async def running(api: EngineApi, docker: DockerBuilder) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = await api.call(
        "GET", "/containers/json", {"filters": {"network": [docker.network]}}
    )
    return found


async def nothing_left(api: EngineApi, docker: DockerBuilder) -> None:
    async def gone() -> bool:
        return not await running(api, docker)

    await eventually(gone, what="the end of every step")


@asynccontextmanager
async def unharmed(docker: DockerBuilder) -> AsyncIterator[None]:
    """Somebody else builds meanwhile, and so does the machine go on."""
    honest = asyncio.create_task(build(docker, "RUN sleep 2 && echo honest"))
    yield
    assert (await honest).of("stdout") == ["honest"]
    assert await (await asyncio.create_subprocess_exec("true")).wait() == 0


@pytest.mark.promise("P10")
async def test_a_fork_bomb_and_an_endless_build(docker: DockerBuilder, api: EngineApi) -> None:
    async with unharmed(docker):
        bomb = asyncio.create_task(build(docker, "RUN perl -e 'while (1) { fork }'"))

        async def limited() -> bool:
            if bomb.done():
                # What it was before its limit came was too much for its memory.
                return True
            for found in await running(api, docker):
                if "fork" in found["Command"]:
                    stats: dict[str, Any] = await api.call(
                        "GET", f"/containers/{found['Id']}/stats", {"stream": "false"}
                    )
                    return bool(stats["pids_stats"].get("limit") == 100)
            return False

        await eventually(limited, seconds=20, what="a limit on the bomb")
        # It has no end of its own; whose build it is ends it, be it by the clock.
        bomb.cancel()
        await asyncio.gather(bomb, return_exceptions=True)
    await nothing_left(api, docker)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        # One file: the kernel says no at the very byte.
        (["RUN dd if=/dev/zero of=/big bs=1M count=400"], "exit code"),
        ([f"RUN {FILL.format('/tmp')}"], "disk"),
        (["VOLUME /data", f"RUN {FILL.format('/data')}"], "disk"),
        ([f"RUN {DIG} && {FILL.format('/tmp')}"], "disk"),
        (["VOLUME /data", f"RUN cd /data && {DIG} && {FILL.format('/data')}"], "disk"),
        ([f"RUN head -c 40000000 /dev/urandom > /f{n}" for n in range(4)] + ["RUN sleep 60"], "disk"),
    ],
    ids=["one file", "many files", "a volume", "too deep", "too deep a volume", "many steps"],
)  # fmt: skip
async def test_a_filler_of_disks(docker: DockerBuilder, api: EngineApi, lines: list[str], words: str) -> None:
    before = shutil.disk_usage("/").free
    began = time.monotonic()
    with pytest.raises(StepFailed, match=words) as failed:
        await build(docker, *lines)
    assert time.monotonic() - began < 30
    if words == "disk":
        assert failed.value.message == f"the build used more than its {DISK_MB} MB of disk"
    await nothing_left(api, docker)
    # Of what it wrote between two looks nothing is left either.
    assert before - shutil.disk_usage("/").free < 2_000_000_000


async def test_a_build_waits_for_a_disk_that_is_nearly_full(docker: DockerBuilder) -> None:
    full = docker_builder(PREFIX, least_free_mb=shutil.disk_usage("/").free // 1024**2 * 2)
    assert await docker.full() is None
    assert "MB left" in (await full.full() or "")
    with pytest.raises(ProviderFailed, match="MB left"):
        await build(full, "RUN sleep 60")


async def test_a_scan_of_the_platform_finds_nothing(docker: DockerBuilder, api: EngineApi) -> None:
    network = await api.call("GET", f"/networks/{docker.network}")
    gateway = network["IPAM"]["Config"][0]["Gateway"]
    service = await asyncio.start_server(lambda _, writer: writer.close(), "0.0.0.0", 0)
    port = service.sockets[0].getsockname()[1]
    hosts = [gateway, METADATA, "172.17.0.1", "10.0.0.1", "192.168.0.1"]
    targets = [f"{host}:{number}" for host in hosts for number in (port, 22, 4222)]
    try:
        targets += [f"{address}:{port}" for address in addresses()]
        async with neighbour(docker, api) as other:
            said = await build(docker, f"RUN perl -e '{SCAN}' {' '.join([*targets, other])}")
    finally:
        service.close()
    assert said.of("stdout") == ["scanned"]


# A packet of its own making, to a neighbour on the bridge: what root with NET_RAW can do.
SEND = (
    "open my $f, q(<), q(/sys/class/net/eth0/ifindex); socket(my $s, 17, 2, 0) or die $!; "
    "my $to = pack q(S n l S C C a8), 17, 0x86dd, <$f>, 1, 0, 6, pack(q(H*), $ARGV[0]); "
    "for (1 .. 5) { send($s, pack(q(H*), $ARGV[1]), 0, $to) or die $!; select undef, undef, undef, 0.1 }"
)


async def test_no_step_reaches_the_machine_by_ipv6(docker: DockerBuilder) -> None:
    mac, machine = on_bridge(docker.network)

    async def heard() -> bool:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as listener:
            listener.bind(("::", 0))
            listener.setblocking(False)
            packet = datagram(bytes.fromhex("fe80" + 13 * "00" + "99"), machine, listener.getsockname()[1])
            await build(docker, f"RUN perl -e '{SEND}' {mac} {packet.hex()}")
            try:
                return listener.recv(100) == b"let me in"
            except BlockingIOError:
                return False

    assert not await heard()
    # The rules are what keeps it from there; and they come back.
    await asyncio.to_thread(remove_firewall, (POLICY.chain(""),))
    assert await heard()
    await asyncio.to_thread(Firewall(POLICY).reassert, ())
    assert not await heard()


def on_bridge(name: str) -> tuple[str, bytes]:
    """Where the machine is there: its addresses of the link and in IPv6."""
    mac = Path("/sys/class/net", name, "address").read_text().strip().replace(":", "")
    found = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines()]
    return mac, next(bytes.fromhex(words[0]) for words in found if words[5] == name)


def datagram(source: bytes, target: bytes, port: int) -> bytes:
    """UDP in IPv6, from any port."""
    said = b"let me in"
    length = 8 + len(said)
    plain = struct.pack("!HHHH", 9, port, length, 0) + said
    summed = source + target + struct.pack("!LL", length, socket.IPPROTO_UDP) + plain + b"\0"
    total = sum(struct.unpack(f"!{len(summed) // 2}H", summed))
    check = 0xFFFF - total % 0xFFFF
    header = struct.pack("!LHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + source + target
    return header + plain[:6] + struct.pack("!H", check) + said


def addresses() -> list[str]:
    """This machine's own."""
    said = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout
    return [address for address in said.split() if ":" not in address]


@asynccontextmanager
async def neighbour(docker: DockerBuilder, api: EngineApi) -> AsyncIterator[str]:
    """Another build, which listens to the last: an address it left could be the next build's own."""
    listen = (
        "use IO::Socket::INET; $l = IO::Socket::INET->new(LocalPort => 8000, Listen => 5); $l->accept while 1"
    )
    other = asyncio.create_task(build(docker, f"RUN perl -e '{listen}'"))
    try:

        async def listening() -> str | None:
            for found in await running(api, docker):
                address = found["NetworkSettings"]["Networks"][docker.network]["IPAddress"]
                try:
                    _, writer = await asyncio.open_connection(address, 8000)
                except OSError:
                    continue
                writer.close()
                return f"{address}:8000"
            return None

        yield await eventually(listening, seconds=60, what="the other build")
        assert not other.done()
    finally:
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)


async def test_a_hunt_for_secrets_and_rights_finds_none(docker: DockerBuilder) -> None:
    said = await build(
        docker,
        "RUN env; cat /proc/1/environ; cat /proc/mounts; ls -a / /run /tmp /root",
        "RUN ls /var/run/docker.sock /run/secrets; true",
        "RUN grep -E 'CapEff|Seccomp:' /proc/self/status",
        "RUN mount -t tmpfs none /mnt || echo no mount",
        "RUN mknod /disk b 254 0 && head -c 1 /disk || echo no disk",
        "RUN cat /proc/kcore > /dev/null || echo no memory",
        "RUN echo 1 > /proc/sys/kernel/panic || echo no kernel",
    )
    text = "\n".join(line for _, line in said.lines)
    assert SECRET not in text
    # A variable whose value is nowhere else: what the builder's own process was told.
    for name in ("BERTH_", "POSTGRES", "NATS_"):
        assert f"\n{name}" not in text
    lines = "\n".join(said.of("stdout")).split("\n")
    assert not any("docker.sock" in line for line in lines)
    assert {"no mount", "no disk", "no memory", "no kernel"} <= set(lines)
    rights = next(line for line in lines if line.startswith("CapEff"))
    # Neither CAP_SYS_ADMIN nor CAP_NET_ADMIN nor CAP_SYS_PTRACE.
    assert int(rights.split()[1], 16) & ((1 << 21) | (1 << 12) | (1 << 19)) == 0
    assert "Seccomp:\t2" in lines


async def test_links_that_lead_out_of_the_source(docker: DockerBuilder) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        text = f"FROM {BASE}\nCOPY out/hostname /found\nRUN cat /found\n".encode()
        info = tarfile.TarInfo("Dockerfile")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    said = Said()
    with pytest.raises(StepFailed):
        await docker.build(new_order(), packed, "Dockerfile", (BASE,), said)
    assert os.uname().nodename not in said.of("stdout")


async def test_through_the_service(gateway: Gateway, docker: DockerBuilder) -> None:
    """An end by the clock, a log without end, an archive that unpacks to more than there may be: all at once,
    beside somebody's honest build."""
    await gateway.builder(
        None, prefix=PREFIX, engine=URL, concurrency=4, timeout_seconds=12, log_mb=0.2, source_mb=1
    )
    now = time.time_ns()
    requests = {
        "endless": gateway.upload({"Dockerfile": f"FROM {BASE}\nRUN sleep 600 # {now}\n"}),
        "talker": gateway.upload(
            {"Dockerfile": f"FROM {BASE}\nRUN perl -e 'print qq(y) x 999, qq(\\n) for 1..5000' # {now}\n"}
        ),
        "bomb": gateway.upload({"Dockerfile": f"FROM {BASE}\n", "bomb": b"\0" * 4_000_000}),
        "honest": gateway.upload({"Dockerfile": f"FROM {BASE}\nRUN echo fine # {now}\n"}),
    }
    await gateway.harness.publish(*requests.values())
    results: dict[str, BuildResult] = {}
    for name, request in requests.items():
        results[name] = (await gateway.finished(request, 60)).result
    endless, bomb = results["endless"], results["bomb"]
    assert isinstance(endless, BuildFailed)
    assert "not done within" in endless.message
    assert isinstance(bomb, BuildFailed)
    assert bomb.step == "source"
    assert isinstance(results["talker"], BuildSucceeded)
    assert isinstance(results["honest"], BuildSucceeded)
    lines = await gateway.log(requests["talker"])
    assert len(lines) < 1000
    assert any("left out" in line.text for line in lines)
    await gateway.harness.stop("builder")
