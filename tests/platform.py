"""The whole platform as operators run it: real servers, every service a process, the machine's engine.

`kill` is SIGKILL, as the kernel or a power cut would; what was killed is started again by `revive`.
"""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import docker
from docker.models.containers import Container
from embedded.leftovers import unmount_below
from embedded.traefik import Traefik
from runtime.permissions import SERVICES

from tests.customer import Customer
from tests.harness import SECRET, Servers, eventually, free_port, servers

EVERYTHING = (*SERVICES, "node-agent")
# A run of tests that is itself killed leaves no platform at work.
DIES_WITH_US = ("setpriv", "--pdeathsig", "SIGKILL")
ADMIN = ("admin@example.org", "an administrator of tests")


@dataclass
class Platform:
    folder: Path
    node: str
    running: Servers
    traefik: Traefik
    api_port: int
    settings: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ops: dict[str, int] = field(default_factory=dict)
    # Of an agent that has a process to itself.
    agent_python: str = sys.executable

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def ingress(self) -> str:
        return f"http://127.0.0.1:{self.traefik.port}"

    def customer(self) -> Customer:
        return Customer(self.api, self.ingress)

    def start(self, *services: str) -> None:
        """One process for what is named together."""
        name = "+".join(services)
        ops = self.ops.setdefault(name, free_port())
        log = (self.folder / f"{name}.log").open("ab")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            **{k: v for k, v in os.environ.items() if k in ("SSL_CERT_FILE", "PIP_CERT", "DOCKER_HOST")},
            **self.settings,
            "BERTH_OPS_PORT": str(ops),
        }
        with log:
            self.processes[name] = subprocess.Popen(
                [
                    *DIES_WITH_US,
                    self.agent_python if name == "node-agent" else sys.executable,
                    "-W",
                    "error::ResourceWarning",
                    "-m",
                    "runtime.cli",
                    "run",
                    *services,
                ],
                env=environment,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    async def ready(self, seconds: float = 60) -> None:
        for name, port in self.ops.items():
            if name in self.processes:
                await eventually(partial(_ready, port), seconds=seconds, every=0.1, what=f"{name} ready")

    def kill(self, name: str) -> None:
        """SIGKILL, whatever it was doing."""
        if name == "postgres":
            _kill_group(self.running.postgres.daemon.pid())
        elif name == "nats":
            _kill_group(self.running.nats.daemon.pid())
        else:
            process = self.processes.pop(name)
            process.kill()
            process.wait()

    async def revive(self, name: str) -> None:
        if name not in ("postgres", "nats"):
            self.start(*name.split("+"))
            return
        server = self.running.postgres if name == "postgres" else self.running.nats
        await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.wait_ready)

    def stop(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        if process.poll() is None:
            process.kill()
            process.wait()
            raise AssertionError(f"{name} did not stop within 20 s")

    def stop_all(self) -> None:
        for name in list(self.processes):
            self.stop(name)

    def containers(self) -> list[Container]:
        client = docker.from_env()
        try:
            found: list[Container] = client.containers.list(
                all=True, ignore_removed=True, filters={"label": f"berth.node={self.node}"}
            )
            return found
        finally:
            client.close()

    def log_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def sweep(self) -> None:
        """Whatever tenants' containers, networks and mounted volumes of this node are left."""
        client = docker.from_env()
        try:
            for container in client.containers.list(
                all=True, ignore_removed=True, filters={"label": f"berth.node={self.node}"}
            ):
                container.remove(force=True)
            for network in client.networks.list(filters={"label": f"berth.node={self.node}"}):
                network.remove()
        finally:
            client.close()
        unmount_below(self.folder)


def reachable_by_nodes(running: Servers, api_port: int) -> dict[str, str]:
    certificate = running.nats.certificate
    if certificate is None:
        return {}
    return {
        "BERTH_HTTP_HOST": "0.0.0.0",
        "GATEWAY_PUBLIC_URL": f"http://{certificate.host}:{api_port}",
        "GATEWAY_NODE_NATS_URL": str(running.nats.public_url),
        "GATEWAY_NODE_NATS_CA": str(certificate.public),
    }


async def _ready(port: int) -> bool:
    def ask() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
                return bool(response.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    return await asyncio.to_thread(ask)


async def _has_its_node(here: Platform) -> bool:
    """Before that nobody may create an app."""
    async with here.customer() as administrator:
        await administrator.log_in(*ADMIN)
        nodes = (await administrator.call("GET", "/api/admin/paas/nodes"))["nodes"]
        return any(node["name"] == here.node and node["status"] == "online" for node in nodes)


def _kill_group(pid: int | None) -> None:
    assert pid is not None
    # Postgres's children notice that their parent is gone and end by themselves.
    os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def platform(
    folder: Path,
    node: str,
    *groups: Sequence[str],
    public_host: str | None = None,
    agent_python: str = sys.executable,
    **settings: str,
) -> AsyncIterator[Platform]:
    """`groups`: which services share a process; none: all in one."""
    with servers(folder / "servers", "berth", public_host) as running:
        api_port, http_port = free_port(), free_port()
        traefik = Traefik(folder / "traefik", http_port, free_port())
        traefik.start()
        try:
            await asyncio.to_thread(traefik.wait_ready)
            opened = Platform(
                folder=folder,
                node=node,
                running=running,
                traefik=traefik,
                api_port=api_port,
                settings={
                    "BERTH_STATE": str(folder / "state"),
                    "BERTH_SECRET": SECRET,
                    "BERTH_DATABASE_URL": f"postgresql://127.0.0.1:{running.postgres.port}/berth",
                    "BERTH_NATS_URL": running.nats.url,
                    "BERTH_API_PORT": str(api_port),
                    "BERTH_NODE": node,
                    "GATEWAY_ADMIN_EMAIL": ADMIN[0],
                    "GATEWAY_ADMIN_PASSWORD": ADMIN[1],
                    "DOMAINS_PUBLIC_PORT": str(http_port),
                    "NODE_AGENT_ROUTES": str(traefik.routes),
                    "NODE_AGENT_INGRESS_URL": f"http://127.0.0.1:{http_port}",
                    **reachable_by_nodes(running, api_port),
                    **settings,
                },
                agent_python=agent_python,
            )
            # What a run that was cut off has left must not be taken for ours.
            opened.sweep()
            try:
                for group in groups or (EVERYTHING,):
                    opened.start(*group)
                await opened.ready()
                if set(EVERYTHING) <= {name for group in groups or (EVERYTHING,) for name in group}:
                    await eventually(partial(_has_its_node, opened), seconds=60, every=0.1, what="the node")
                yield opened
            finally:
                try:
                    opened.stop_all()
                finally:
                    opened.sweep()
        finally:
            traefik.stop()
