"""The platform in containers, as an operator runs it: a project, a node, a prefix and ports of its own.

Everything of one run is found again by its project's name, which says whose it is: what a crashed run left
behind is taken away by the next one.
"""

import asyncio
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import docker
import httpx
from docker.errors import APIError, NotFound
from docker.models.containers import Container
from embedded import compose, instances
from embedded.daemon import identity
from embedded.engine import Engine, install
from runtime.permissions import SERVICES

from tests.customer import Customer
from tests.harness import eventually, free_port

HOST = Engine(Path("/nowhere")).host
_PROJECT = re.compile(r"^berthtest(\d+)-(c[0-9a-f]{5})$")
_OF_COMPOSE = "com.docker.compose.project"
PORTS = (
    "BERTH_API_PORT",
    "BERTH_HTTP_PORT",
    "BERTH_NATS_PORT",
    "BERTH_REGISTRY_PORT",
    "BERTH_INGRESS_PING_PORT",
    "BERTH_AGENT_OPS_PORT",
    "BERTH_MESH_PORT",
    "BERTH_MESH_HERE_PORT",
)


def client_of_compose(folder: Path) -> list[str]:
    """Compose v2 or docker-compose, whichever this machine has; root on Debian gets the latter installed."""
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        if asked.returncode == 0:
            return ["docker", "compose"]
    if shutil.which("docker-compose") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        install(("docker-compose",), folder / "install.log")
    assert shutil.which("docker-compose"), "install Docker Compose to run these tests"
    return ["docker-compose"]


def berth(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass
class Stack:
    state: Path
    client: list[str]
    project: str
    prefix: str
    engine: docker.DockerClient

    @property
    def env(self) -> dict[str, str]:
        return compose.parse((self.state / ".env").read_text())

    def prepare(self, **settings: str) -> None:
        """As an operator does, who has chosen his ports before."""
        chosen = {name: str(free_port()) for name in PORTS}
        chosen |= {"BERTH_INGRESS_HOST": "127.0.0.1", "BERTH_PREFIX": self.prefix}
        self.state.mkdir(exist_ok=True)
        (self.state / ".env").write_text("".join(f"{name}={value}\n" for name, value in chosen.items()))
        (self.state / "settings.env").write_text("".join(f"{n}={value}\n" for n, value in settings.items()))
        berth("compose-env", "--state", str(self.state), "--node", self.project)
        berth("compose-images", "--state", str(self.state))

    def compose(self, *words: str) -> str:
        argv = [*self.client, "-p", self.project, "--env-file", str(self.state / ".env")]
        argv += ["-f", str(compose.FOLDER / "compose.yaml"), *words]
        passed = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
        done = subprocess.run(argv, env=passed, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def customer(self) -> Customer:
        ports = self.env
        return Customer(
            f"http://127.0.0.1:{ports['BERTH_API_PORT']}", f"http://127.0.0.1:{ports['BERTH_HTTP_PORT']}"
        )

    async def ready(self) -> None:
        """Every replica says so, and there is a node with room."""
        for service in (*SERVICES, "node-agent"):
            for container in self.containers(service):
                await eventually(
                    partial(self._ready, container), seconds=60, every=0.2, what=f"{container.name} ready"
                )
        async with self.customer() as somebody:
            await self.administrator(somebody)

            async def room() -> Any:
                return (await somebody.call("GET", "/api/paas/locations"))["regions"]

            await eventually(room, seconds=30, every=0.2, what="a node with room")

    async def _ready(self, container: Container) -> bool:
        try:
            return (await self.ops(container, "/readyz")).is_success
        except httpx.TransportError:
            return False

    async def administrator(self, customer: Customer) -> None:
        await customer.log_in(self.env["GATEWAY_ADMIN_EMAIL"], self.env["GATEWAY_ADMIN_PASSWORD"])

    # --- its containers --------------------------------------------------------------------------------

    def containers(self, service: str | None = None) -> list[Container]:
        labels = [f"{_OF_COMPOSE}={self.project}"]
        labels += [] if service is None else [f"com.docker.compose.service={service}"]
        found: list[Container] = self.engine.containers.list(all=True, filters={"label": labels})
        return found

    def apps(self) -> list[Container]:
        labels = [f"berth.prefix={self.prefix}", f"berth.node={self.project}"]
        found: list[Container] = self.engine.containers.list(all=True, filters={"label": labels})
        return found

    async def ops(self, container: Container, path: str) -> httpx.Response:
        """Asked where Prometheus would: at its address in the project's network, or the machine's own."""
        container.reload()
        (network,) = container.attrs["NetworkSettings"]["Networks"].values()
        inside = f"http://{network['IPAddress']}:8001"
        own = f"http://127.0.0.1:{self.env['BERTH_AGENT_OPS_PORT']}"
        async with httpx.AsyncClient(base_url=inside if network["IPAddress"] else own) as client:
            return await client.get(path)

    def last_words(self) -> str:
        """What every part said last: for a failure's report."""
        return "\n".join(
            f"--- {container.name} ({container.status})\n{container.logs(tail=15).decode()}"
            for container in self.containers()
        )


def clear(project: str, prefix: str) -> None:
    """Takes away whatever there is of a run."""
    labels = [f"{_OF_COMPOSE}={project}"]
    with closing(docker.DockerClient(base_url=HOST, timeout=60)) as engine:
        for container in engine.containers.list(all=True, filters={"label": labels}):
            with suppress(NotFound):
                container.remove(force=True, v=True)
        instances.remove(HOST, prefix, project)
        own: dict[str, str | list[str] | bool] = {"label": f"berth.prefix={prefix}"}
        for container in engine.containers.list(all=True, filters=own):
            with suppress(NotFound):
                container.remove(force=True, v=True)
        for network in [*engine.networks.list(filters={"label": labels}), *engine.networks.list(filters=own)]:
            with suppress(NotFound):
                network.remove()
        for volume in engine.volumes.list(filters={"label": labels}):
            with suppress(NotFound):
                volume.remove()
        for image in engine.images.list(name=f"{prefix}/*"):
            with suppress(NotFound, APIError):
                engine.images.remove(str(image.id), force=True)


def clear_crashed() -> None:
    with closing(docker.DockerClient(base_url=HOST)) as engine:
        objects = [
            *(found.labels for found in engine.containers.list(all=True, filters={"label": _OF_COMPOSE})),
            *(found.attrs["Labels"] for found in engine.volumes.list(filters={"label": _OF_COMPOSE})),
        ]
    for project in {labels[_OF_COMPOSE] for labels in objects}:
        ours = _PROJECT.match(project)
        if ours and identity(int(ours[1])) is None:
            clear(project, ours[2])


@asynccontextmanager
async def stack(folder: Path, *scale: str, **settings: str) -> AsyncIterator[Stack]:
    await asyncio.to_thread(clear_crashed)
    prefix = f"c{secrets.token_hex(3)[:5]}"
    project = f"berthtest{os.getpid()}-{prefix}"
    client = client_of_compose(folder)
    with closing(docker.DockerClient(base_url=HOST, timeout=60)) as engine:
        opened = Stack(folder / "state", client, project, prefix, engine)
        await asyncio.to_thread(opened.prepare, **settings)
        try:
            await asyncio.to_thread(opened.compose, "up", "-d", *(f"--scale={part}" for part in scale))
            yield opened
        finally:
            await asyncio.to_thread(clear, project, prefix)
