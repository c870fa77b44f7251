"""The engines the conformance suite runs on, each with what only a hand on the machine can do to it."""

import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Protocol

from contracts.ids import new_id
from contracts.money import Rate
from contracts.workload import HealthCheck, Limits, Slot
from docker import APIClient
from docker.errors import NotFound
from embedded.leftovers import remove_firewall
from node_agent.docker_engine import DockerEngine
from node_agent.docker_networks import Networks
from node_agent.engine import Blueprint, ContainerEngine, Credentials, Identity
from node_agent.firewall import Firewall
from node_agent.firewall_rules import Policy

from tests.ports import docker_image, registry
from tests.ports.fake_engine import FakeEngine

URL = "unix:///var/run/docker.sock"
POOL = IPv4Network("10.251.0.0/16")
_RUN = re.compile(r"t([0-9a-f]{5})")


def _prefix(run: int) -> str:
    return f"t{run:05x}"


# A name of this run's own: neither a platform nor another run of the tests on the machine is touched.
PREFIX = _prefix(os.getpid())


class Hands(Protocol):
    """An engine, and what somebody does to its instances behind the agent's back."""

    @property
    def engine(self) -> ContainerEngine: ...

    image: str
    # A reference that can be pulled with `credentials`, and not without.
    pullable: str
    credentials: Credentials

    async def crash(self, instance: str) -> None: ...

    async def kill(self, instance: str) -> None: ...

    async def remove(self, instance: str) -> None: ...


class FakeHands:
    image = "app:1"
    pullable = "registry.example/app:9"
    credentials = Credentials("node", "a-password-of-the-tests")

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.engine.registry[self.pullable] = ""
        self.engine.credentials = self.credentials

    async def crash(self, instance: str) -> None:
        await self.engine.die(instance)

    async def kill(self, instance: str) -> None:
        await self.engine.kill(instance)

    async def remove(self, instance: str) -> None:
        await self.engine.vanish(instance)


class DockerHands:
    image = docker_image.IMAGE
    credentials = Credentials(registry.USER, registry.PASSWORD)

    def __init__(self, client: APIClient, engine: DockerEngine, pullable: str) -> None:
        self.client = client
        self.engine = engine
        self.pullable = pullable

    def inspect(self, instance: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.inspect_container(f"{PREFIX}-{instance}")
        return found

    def run(self, instance: str, *argv: str, user: str = "") -> tuple[int, str]:
        """A command inside it, as the user of the instance."""
        made = self.client.exec_create(f"{PREFIX}-{instance}", list(argv), user=user)
        output: bytes = self.client.exec_start(made["Id"])
        return self.client.exec_inspect(made["Id"])["ExitCode"], output.decode()

    async def crash(self, instance: str) -> None:
        os.kill(self.inspect(instance)["State"]["Pid"], signal.SIGKILL)

    async def kill(self, instance: str) -> None:
        self.client.kill(f"{PREFIX}-{instance}")

    async def remove(self, instance: str) -> None:
        self.client.remove_container(f"{PREFIX}-{instance}", force=True)


def docker_engine(node: str = "local", policy: Policy | None = None) -> DockerEngine:
    return DockerEngine(
        URL,
        node=node,
        prefix=PREFIX,
        networks=Networks(PREFIX, node, POOL, 24),
        firewall=Firewall(policy or Policy(PREFIX, POOL)),
        tmp_mb=16,
    )


def sweep(client: APIClient, node: str) -> None:
    """Whatever this node, and runs that ended badly, have made: off the machine."""

    def ours(labels: dict[str, str]) -> bool:
        prefix = labels["berth.prefix"]
        return (prefix, labels.get("berth.node")) == (PREFIX, node) or ended(prefix)

    marked = {"label": "berth.prefix"}
    for container in client.containers(all=True, filters=marked):
        if ours(container["Labels"]):
            client.remove_container(container["Id"], force=True, v=True)
    for network in client.networks(filters=marked):
        if ours(network["Labels"]):
            client.remove_network(network["Id"])
    saved = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    chains = re.findall(r"^:(T[0-9A-F]{5})-INPUT ", saved, re.MULTILINE)
    remove_firewall(tuple(f"{chain}-" for chain in chains if ended(chain.lower())))


def ended(prefix: str) -> bool:
    """It is that of a run of the tests which is over."""
    run = _RUN.fullmatch(prefix)
    return run is not None and not Path(f"/proc/{int(run[1], 16)}").exists()


@asynccontextmanager
async def docker_hands(node: str = "local") -> AsyncIterator[DockerHands]:
    client = APIClient(base_url=URL, version="auto")
    engine = docker_engine(node)
    # What a crashed run left behind.
    sweep(client, node)
    try:
        docker_image.ensure(client)
        with registry.registry() as pullable:
            yield DockerHands(client, engine, pullable)
            with suppress(NotFound):
                client.remove_image(pullable, force=True)
    finally:
        sweep(client, node)
        remove_firewall((f"{PREFIX.upper()}-",))
        await engine.close()
        client.close()


def organization() -> str:
    return new_id("org")


def blueprint(hands: Hands, **changes: Any) -> Blueprint:
    """An instance of an organization of its own, unless told otherwise."""
    identity = Identity(
        instance=new_id("ins"),
        workload=changes.pop("workload", None) or new_id("app"),
        organization=changes.pop("organization", None) or organization(),
        slot=changes.pop("slot", Slot(process="web", index=0)),
        generation=1,
        deployment=new_id("dep"),
        fingerprint="0123456789abcdef",
        rate=Rate(micros_per_hour=7_000, currency="USD"),
        started_at=datetime(2026, 3, 1, 12, 0, 0, 250, UTC),
        port=changes.pop("port", 8080),
        health=changes.pop("health", HealthCheck()),
        grace_seconds=1.0,
        job=changes.pop("job", None),
    )
    return Blueprint(
        identity=identity,
        image=changes.pop("image", hands.image),
        command=changes.pop("command", None),
        uid=changes.pop("uid", 100_000),
        limits=changes.pop("limits", Limits(cpu_millis=500, memory_mb=64, disk_mb=64, pids=64)),
        environment={"PORT": str(identity.port), **changes},
    )
