"""Data that moves and survives: two nodes with real agents, real volumes and real containers.

An app writes one number after the other, each on the disk before it is acknowledged, while its node is
emptied, and while its node is killed. What was acknowledged is compared with what is there afterwards.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import docker
import httpx
import pytest
from contracts.copies import WorkloadCopies
from contracts.events import AppChanged, InstanceStarted, JobEnded, JobRequested, VolumesMoved
from contracts.ids import new_id
from contracts.jobs import Job
from contracts.queries import CopiesOf, NodeChanged, PlacesOf, Workloads, WorkloadsAfter
from contracts.workload import Endpoints, HealthCheck, Limits, Process, Volume, WorkloadSpec
from docker.models.containers import Container
from embedded.leftovers import remove_firewall
from embedded.traefik import Traefik
from node_agent.commands import run
from runtime.bus import Bus
from scheduler.app import create as create_scheduler

from tests.harness import SECRET, Harness, eventually, free_port
from tests.platform import DIES_WITH_US
from tests.ports.docker_image import IMAGE, ensure
from tests.scheduler.samples import RATE

NODES = {"n1": ("vola", "10.233.0.0/20"), "n2": ("volb", "10.233.16.0/20")}

# Counts on from the last number in the file; a number is on the disk before it is told.
_COUNTS = r"""exec perl -e '
use strict; use IO::Socket::INET; use IO::Handle; my $n = 0;
my $l = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 64, ReuseAddr => 1) or die $!;
if (open my $f, "<", "/data/log") { while (<$f>) { $n = $_ + 0 if /^\d+\n/ } }
open my $log, ">>", "/data/log" or die $!;
while (my $c = $l->accept) {
    my $line = <$c>; while (defined(my $h = <$c>)) { last if $h =~ /^\r?$/ }
    if ($line =~ m{ /next }) { $n++; print $log "$n\n"; $log->flush; $log->sync or next }
    my $b = "$n\n";
    print $c "HTTP/1.1 200 OK\r\nContent-Length: " . length($b) . "\r\nConnection: close\r\n\r\n$b";
    close $c;
}'"""

VOLUME = Volume(id=new_id("vol"), name="data", path="/data", size_mb=32, encrypted=True)


def counter() -> WorkloadSpec:
    return WorkloadSpec(
        id=new_id("app"),
        name="counter",
        organization=new_id("org"),
        project=new_id("prj"),
        generation=1,
        state="running",
        region="local",
        plan="small",
        limits=Limits(cpu_millis=500, memory_mb=64, disk_mb=64, pids=64),
        rate=RATE,
        uid=100_000,
        processes={"web": Process(command=_COUNTS)},
        health=HealthCheck(kind="http", path="/", interval_seconds=0.5, timeout_seconds=2, start_seconds=20),
        grace_seconds=1,
        image=IMAGE,
        release=new_id("rel"),
        deployment=new_id("dep"),
        volumes=(VOLUME,),
        copy_minutes=1,
    )


def job(of: WorkloadSpec, command: str) -> Job:
    return Job(
        id=new_id("job"),
        kind="run",
        spec=of,
        command=command,
        timeout_seconds=3600,
        start_before=datetime.now(UTC) + timedelta(minutes=5),
    )


@dataclass
class Machine:
    """A node: an agent of its own process, and a folder."""

    name: str
    folder: Path
    harness: Harness
    traefik: Traefik
    process: subprocess.Popen[bytes] | None = None

    @property
    def volumes(self) -> Path:
        return self.folder / "state" / "nodes" / self.name / "volumes"

    def start(self) -> None:
        prefix, pool = NODES[self.name]
        settings = self.harness.settings
        environment = {
            "PATH": os.environ["PATH"],
            "BERTH_STATE": str(self.folder / "state"),
            "BERTH_SECRET": SECRET,
            "BERTH_NATS_URL": settings.nats_url,
            "BERTH_NODE": self.name,
            "BERTH_OPS_PORT": str(free_port()),
            "NODE_AGENT_PREFIX": prefix,
            "NODE_AGENT_NETWORK_POOL": pool,
            "NODE_AGENT_ROUTES": str(self.traefik.routes),
            "NODE_AGENT_INGRESS_URL": f"http://127.0.0.1:{self.traefik.port}",
            "NODE_AGENT_HEARTBEAT_SECONDS": "1",
            "NODE_AGENT_DRAIN_SECONDS": "1",
            "NODE_AGENT_CPU_MILLIS": "4000",
        }
        argv = [*DIES_WITH_US, sys.executable, "-m", "runtime.cli", "run", "node-agent"]
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, env=environment, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def kill(self) -> None:
        """The agent and all it runs, at once."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for container in self.containers():
            container.kill()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

    def containers(self, *, everything: bool = False) -> list[Container]:
        client = docker.from_env()
        try:
            found: list[Container] = client.containers.list(
                all=everything,
                ignore_removed=True,
                filters={"label": f"berth.prefix={NODES[self.name][0]}"},
            )
            return found
        finally:
            client.close()

    def sweep(self) -> None:
        client = docker.from_env()
        try:
            for container in self.containers(everything=True):
                container.remove(force=True)
            for network in client.networks.list(filters={"label": f"berth.prefix={NODES[self.name][0]}"}):
                network.remove()
        finally:
            client.close()
        for mount in self.volumes.glob("mounts/*"):
            run("umount", str(mount), good=range(256))

    def aside(self) -> list[Path]:
        return list((self.volumes / "aside").glob("*"))


@dataclass
class Customer:
    """Writes without a pause, wherever the app is, and remembers what was acknowledged and when."""

    bus: Bus
    app: WorkloadSpec
    acknowledged: list[tuple[int, datetime]] = field(default_factory=list)
    address: str | None = None

    async def write(self) -> None:
        async with httpx.AsyncClient(timeout=2) as http:
            while True:
                try:
                    address = self.address or await self._where()
                    answer = await http.get(f"http://{address}/next")
                    answer.raise_for_status()
                    self.acknowledged.append((int(answer.text), datetime.now(UTC)))
                    self.address = address
                except (httpx.HTTPError, LookupError):
                    self.address = None
                    await asyncio.sleep(0.05)

    async def _where(self) -> str:
        places = (await self.bus.ask(PlacesOf(workload=self.app.id))).places
        for place in places:
            entry = await self.bus.bucket("endpoints").get(f"{self.app.id}.{place.node}")
            if entry is not None and (known := Endpoints.model_validate_json(entry.value)).addresses:
                return known.addresses[0]
        raise LookupError("it is nowhere")

    async def goes_on(self, after: int, seconds: float = 60) -> None:
        """Somebody acknowledges again after so many answers."""

        async def more() -> bool:
            return len(self.acknowledged) >= after + 20

        await eventually(more, seconds=seconds, what="acknowledged writes")


@asynccontextmanager
async def machines(harness: Harness, folder: Path) -> AsyncIterator[dict[str, Machine]]:
    made: dict[str, Machine] = {}
    try:
        for name in NODES:
            home = folder / name
            traefik = Traefik(home / "traefik", free_port(), free_port())
            traefik.start()
            made[name] = Machine(name, home, harness, traefik)
            await asyncio.to_thread(traefik.wait_ready)
            made[name].sweep()
        yield made
    finally:
        for machine in made.values():
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(machine.stop)
            await asyncio.to_thread(machine.sweep)
            machine.traefik.stop()
        await asyncio.to_thread(remove_firewall, tuple(f"{prefix.upper()}-" for prefix, _ in NODES.values()))


@pytest.mark.promise("K8")
async def test_data_moves_with_its_app_and_survives_its_node(
    harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHEDULER_OFFLINE_SECONDS", "6")
    client = docker.APIClient()
    await asyncio.to_thread(ensure, client)
    client.close()
    app, bus = counter(), await harness.everybody()

    async def snapshot(_: WorkloadsAfter) -> Workloads:
        return Workloads(specs=(app,), next=None)

    await harness.answers(WorkloadsAfter, snapshot)
    await harness.start("scheduler", create_scheduler)

    async def copies() -> WorkloadCopies:
        return await bus.ask(CopiesOf(workload=app.id))

    async def copied(since: datetime) -> WorkloadCopies | None:
        found = await copies()
        return found if found.newest is not None and found.newest > since else None

    async with machines(harness, tmp_path) as nodes:
        n1, n2 = nodes["n1"], nodes["n2"]
        n1.start()
        await harness.publish(AppChanged(spec=app))
        await harness.event(InstanceStarted, lambda e: e.node == "n1", seconds=60)
        customer = Customer(bus, app)
        writing = asyncio.create_task(customer.write())
        try:
            await customer.goes_on(0)
            n2.start()
            first = await eventually(
                lambda: copied(datetime.now(UTC) - timedelta(hours=1)), seconds=60, what="a copy"
            )
            assert (first.home, first.on) == ("n1", "n2")

            # --- its node is emptied: nothing is lost, and what a command has of the data ends
            at_work = job(app, "echo there > /data/command; exec sleep 1000")
            await harness.publish(JobRequested(job=at_work))
            await eventually(lambda: jobs_of(n1), seconds=30, what="the begin of a command")
            await bus.ask(NodeChanged(node="n1", draining=True))
            moved = await harness.event(VolumesMoved, seconds=60)
            assert (moved.source, moved.target, moved.lost_until) == ("n1", "n2", None)
            ended = await harness.event(JobEnded, lambda e: e.job == at_work.id)
            assert (ended.outcome, ended.words) == ("cancelled", "its app moved to another node")
            reads = job(app, "cat /data/command")
            await harness.publish(JobRequested(job=reads))
            ended = await harness.event(JobEnded, lambda e: e.job == reads.id, seconds=60)
            assert (ended.outcome, [line.text for line in ended.tail]) == ("succeeded", ["there"])
            done = len(customer.acknowledged)
            await customer.goes_on(done)
            numbers = [number for number, _ in customer.acknowledged]
            assert numbers == sorted(set(numbers)), "no number twice: none was forgotten"
            times = [at for _, at in customer.acknowledged]
            away = max(b - a for a, b in pairwise(times))
            print(f"away while it moved: {away.total_seconds():.1f} s")

            async def put_aside(machine: Machine) -> bool:
                return len(await asyncio.to_thread(machine.aside)) == 1

            await eventually(lambda: put_aside(n1), seconds=30, what="the old volume of n1")
            assert not await asyncio.to_thread(n1.containers)

            # --- its node is killed: what was written since the newest copy, and no more
            await bus.ask(NodeChanged(node="n1", draining=False))
            # By the scheduler's clock every copy is old enough now, so one follows the other.
            harness.clock.advance(181)
            since = datetime.now(UTC)
            await eventually(lambda: copied(since), seconds=60, what="a copy on n1")
            await customer.goes_on(len(customer.acknowledged))
            before = await copies()
            await asyncio.to_thread(n2.kill)
            lost = await harness.event(VolumesMoved, lambda e: e.source == "n2", seconds=90)
            assert lost.target == "n1"
            assert lost.lost_until is not None
            assert before.newest is not None
            assert lost.taken_at >= before.newest, "never from an older one than was shown"
            known = list(customer.acknowledged)
            await customer.goes_on(len(known), seconds=60)
            resumed = customer.acknowledged[len(known)][0]
            gone = [(number, at) for number, at in known if number >= resumed]
            print(
                f"acknowledged {len(known)}, lost {len(gone)}, of the last "
                f"{(lost.lost_until - lost.taken_at).total_seconds():.1f} s; serving again after "
                f"{(customer.acknowledged[len(known)][1] - known[-1][1]).total_seconds():.1f} s"
            )
            assert gone, "it was killed in the midst of writing"
            assert all(lost.taken_at < at <= lost.lost_until for _, at in gone)

            # --- the lost node is back: what it has is old, is not run, and is kept
            n2.start()
            await eventually(lambda: put_aside(n2), seconds=60, what="the old volume of n2")
            await eventually(
                lambda: nothing_of(n2), seconds=30, what="the end of what was left on the lost node"
            )
            assert len(await asyncio.to_thread(n1.containers)) == 1
            await customer.goes_on(len(customer.acknowledged))
            assert [p.node for p in (await bus.ask(PlacesOf(workload=app.id))).places] == ["n1"]
        except BaseException:
            for machine in nodes.values():
                print((machine.folder / "agent.log").read_text()[-6000:])
            raise
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)


async def jobs_of(machine: Machine) -> bool:
    found = await asyncio.to_thread(machine.containers)
    return any(container.labels.get("berth.job") for container in found)


async def nothing_of(machine: Machine) -> bool:
    return not await asyncio.to_thread(machine.containers, everything=True)
