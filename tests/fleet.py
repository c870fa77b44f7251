"""Several nodes on this machine: each a server of its own, with an engine, an agent and an ingress, joined to
one control plane by `node.sh`, as a real one is.

A node's programs are those of this checkout, so none is fetched and installed: it is up in a few seconds.
`kill` is a power cut; `cut` takes only the cable out, and what runs there goes on.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import nats
import orjson
from contracts.events import BuildFinished, DeploymentRequested
from contracts.ids import new_id
from contracts.workload import BuildResult, BuildSucceeded
from nats.js.errors import NotFoundError

from tests.conftest import ROOT
from tests.customer import Customer, archive
from tests.harness import EVERYTHING, SECRET, eventually
from tests.nodes.machines import Server, address_of, network, server
from tests.platform import ADMIN, Platform, platform

CONTROL_PLANE = ("gateway", "scheduler", "domains", "billing")
REGION = "edge"
# What a node of the tests is told: all that takes its time in earnest is short.
QUICK = {"NODE_AGENT_HEARTBEAT_SECONDS": "1", "NODE_AGENT_DRAIN_SECONDS": "5"}
# Silent for so long, a node is offline.
SILENCE = 5.0
_SOURCE = archive({"app": "played"})
_PROGRAM = "/opt/berth-node"
# Answers every request with a name of its own, made when it starts: so two copies are told apart.
_PERL = r"""
use strict; use IO::Socket::INET; $| = 1; $SIG{CHLD} = "IGNORE";
open my $r, "<", "/dev/urandom"; read $r, my $n, 4; my $body = "copy " . unpack("H*", $n);
my $l = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 511, ReuseAddr => 1) or die $!;
$SIG{TERM} = sub { exit 0 };
while (1) {
    my $c = $l->accept or next;
    if (fork) { close $c; next }
    $SIG{TERM} = "DEFAULT"; my $head = "";
    while (sysread $c, my $part, 4096) {
        $head .= $part;
        while ($head =~ s/^(.*?)\r\n\r\n//s) {
            syswrite $c, "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
        }
    }
    exit 0;
}
"""
BASE = "berth/base:bookworm"
COPY = BuildSucceeded(
    image=BASE,
    digest="sha256:0",
    size_bytes=1,
    recipe="docker",
    processes={"web": f"exec perl -e '{_PERL}'"},
)


@dataclass
class Node:
    """A server that is a node, and what may happen to one."""

    name: str
    server: Server
    up: bool = True
    _way_out: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.server.address

    def join(self, url: str, script: str, token: str) -> None:
        """By the platform's script, which finds the programs it would install in their place."""
        match = re.search(r"^BUNDLE_SHA256='([0-9a-f]{64})'$", script, re.MULTILINE)
        assert match is not None
        release = f"{_PROGRAM}/releases/{match[1]}"
        self.server.put("/root/node.sh", script.encode())
        links = f"mkdir -p {release}; ln -s {ROOT}/.venv {release}/venv; touch {release}/complete"
        self.server.run("bash", "-ec", links)
        self.server.make_devices()
        said = self.server.run("bash", "/root/node.sh", "--name", self.name, told={"BERTH_JOIN_TOKEN": token})
        assert f"{self.name} is ready" in said

    def load(self, image: Path) -> None:
        self.server.run("docker", "load", "--quiet", "--input", str(image))

    def kill(self) -> None:
        """The power is cut: engine, containers and agent at once, and nobody on the wire is told."""
        self.server.run("ip", "link", "set", "eth0", "down")
        self.server.container.kill()
        self.server.container.wait()
        self.up = False

    def power(self) -> None:
        """It is back."""
        self.server.container.start()
        self.server.address = address_of(self.server.container)
        self.up = True
        self.server.make_devices()

    def boot(self) -> None:
        """What a machine starts when it has power; its engine starts what ran before by itself."""
        self.server.run("/usr/local/sbin/berth-node", "start")

    def cut(self) -> None:
        # The kernel forgets the way out with the link.
        self._way_out = self.server.run("ip", "route", "show", "default").split()
        self.server.run("ip", "link", "set", "eth0", "down")

    def heal(self) -> None:
        self.server.run("ip", "link", "set", "eth0", "up")
        self.server.run("ip", "route", "replace", *self._way_out)

    def containers(self, workload: str) -> list[str]:
        """The instances of it that run here."""
        mine = ["--filter", f"label=berth.workload={workload}"]
        return self.server.run("docker", "ps", *mine, "--format", '{{.Label "berth.instance"}}').split()

    def answers_inside(self, hostname: str) -> bool:
        """Whether its own ingress serves the app, asked on the machine itself."""
        asked = ["curl", "--silent", "--fail", "--max-time", "2", "--header", f"Host: {hostname}"]
        return self.server.tries(*asked, "http://127.0.0.1/")[0] == 0

    def log(self) -> str:
        return self.server.log()


@dataclass
class Fleet:
    platform: Platform
    # Of this machine, for the nodes.
    host: str
    nodes: dict[str, Node]
    administrator: Customer
    _built: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    async def view(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.administrator.call("GET", f"/api/admin/paas/nodes/{name}")
        return found

    async def status(self, name: str, wanted: str, seconds: float = 30) -> None:
        async def look() -> bool:
            return bool((await self.view(name))["node"]["status"] == wanted)

        await eventually(look, seconds=seconds, every=0.1, what=f"{name} {wanted}")

    async def pay(self, customer: Customer, amount: str = "50") -> None:
        path = f"/api/admin/organizations/{customer.organization}/credits"
        await self.administrator.call("POST", path, json={"amount": amount})

    async def live(self, customer: Customer, name: str, **more: Any) -> tuple[str, str]:
        """An app that is there already as an image, from nothing to running; its id and its hostname."""
        app = await customer.create(name, region=REGION, retry=True, **more)
        await self.deploy(customer, app)
        view = await customer.status(app, "running")
        return app, str(httpx.URL(view["url"]).host)

    async def deploy(self, customer: Customer, app: str, result: BuildResult = COPY) -> None:
        """Plays the builder."""
        await customer.deploy(app, _SOURCE)
        client = await nats.connect(self.platform.running.nats.url, user=EVERYTHING, password=SECRET)
        try:
            js = client.jetstream()

            async def asked() -> DeploymentRequested | None:
                try:
                    found = await js.get_last_msg("EVENTS", DeploymentRequested.name)
                except NotFoundError:
                    return None
                request = DeploymentRequested.model_validate_json(found.data or b"")
                return request if request.workload == app and request.id not in self._built else None

            request = await eventually(asked, what="the deployment")
            self._built.add(request.id)
            event = BuildFinished(
                build=new_id("bld"),
                deployment=request.deployment,
                workload=app,
                organization=request.organization,
                seconds=1,
                result=result,
            )
            await js.publish(event.subject(), orjson.dumps(event.model_dump(mode="json")))
        finally:
            await client.close()

    def homes(self, workload: str) -> dict[str, list[str]]:
        """The instances that run, on the nodes that are up."""
        found = {name: node.containers(workload) for name, node in self.nodes.items() if node.up}
        return {name: instances for name, instances in found.items() if instances}

    async def ask(self, name: str, hostname: str) -> tuple[int, str]:
        """What a visitor is told at the ingress of a node; status 0 when nobody answers."""
        try:
            async with httpx.AsyncClient(timeout=2) as client:
                answer = await client.get(f"http://{self[name].address}/", headers={"Host": hostname})
        except httpx.TransportError as error:
            return 0, str(error)
        return answer.status_code, answer.text.strip()

    def log(self) -> str:
        services = self.platform.log_of("+".join(CONTROL_PLANE)).splitlines()[-30:]
        return "\n".join([*services, *(node.log() for node in self.nodes.values() if node.up)])


@asynccontextmanager
async def fleet(
    folder: Path,
    *names: str,
    images: Sequence[str] = (BASE,),
    told: dict[str, str] | None = None,
    **settings: str,
) -> AsyncIterator[Fleet]:
    """Nodes of these names, and a control plane on this machine, which is none of them. `images` of this
    machine's engine are there; `told`: settings of every node."""
    with ExitStack() as left:
        net = f"berth-fleet-{os.getpid()}"
        host = left.enter_context(network(net))
        chosen = {
            "SCHEDULER_OFFLINE_SECONDS": str(SILENCE),
            "GATEWAY_NODE_SETTINGS": orjson.dumps(QUICK if told is None else told).decode(),
            **settings,
        }
        async with platform(folder, "local", CONTROL_PLANE, public_host=host, **chosen) as running:
            saved = await asyncio.to_thread(save, folder, images)
            shows = (ROOT, Path(sys.base_prefix), folder)

            def begin(name: str) -> Server:
                return left.enter_context(server(name, net, [p for p in shows if p != Path("/usr")]))

            nodes = {name: Node(name, begin(name)) for name in names}
            async with running.customer() as administrator:
                await administrator.log_in(*ADMIN)
                opened = Fleet(running, host, nodes, administrator)
                await asyncio.gather(*(_join(opened, node, saved) for node in nodes.values()))
                await asyncio.gather(*(opened.status(name, "online") for name in names))
                yield opened


async def _join(here: Fleet, node: Node, images: Path) -> None:
    url = f"http://{here.host}:{here.platform.api_port}"
    asked = {"region": REGION, "node": node.name}
    made = await here.administrator.call("POST", "/api/admin/paas/join-tokens", json=asked)
    script = (await here.administrator.client.get(f"{url}/install/node.sh")).text
    await asyncio.to_thread(node.join, url, script, made["token"])
    await asyncio.to_thread(node.load, images)


def save(folder: Path, images: Sequence[str]) -> Path:
    """For the nodes, out of this machine's engine: no registry stands between them here."""
    place = folder / "images.tar"
    subprocess.run(["docker", "save", "--output", str(place), *images], check=True, capture_output=True)
    return place
