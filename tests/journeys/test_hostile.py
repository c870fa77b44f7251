"""A customer who deploys what wants out of its container: it finds nothing of anybody else's."""

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import docker
import httpx
import pytest
from embedded.leftovers import remove_firewall

from tests.customer import Customer, folder, hello
from tests.harness import eventually
from tests.platform import ADMIN, Platform, platform
from tests.ports.test_isolation import METADATA, NEIGHBOUR, PARTNER, PORT, world

__all__ = ["world"]

HOSTILE = Path(__file__).parent / "hostile"
PREFIX = f"h{os.getpid() % 0x100000:05x}"


def addresses() -> list[str]:
    """Of this machine."""
    said = subprocess.run(["ip", "-j", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    mine = {one["local"] for link in json.loads(said) for one in link["addr_info"]}
    return sorted(address for address in mine if not address.startswith("127."))


@pytest.fixture(scope="module")
def address() -> str:
    return addresses()[0]


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory, address: str) -> AsyncIterator[Platform]:
    """The control plane listens on every address of this machine, as it does for nodes of others."""
    more = {"NODE_AGENT_PREFIX": PREFIX, "NODE_AGENT_CPU_MILLIS": "16000", "NODE_AGENT_TMP_MB": "16"}
    try:
        async with platform(tmp_path_factory.mktemp("hostile"), "hostile", public_host=address, **more) as up:
            yield up
    finally:
        remove_firewall((f"{PREFIX.upper()}-",))


async def tenant(here: Platform, customer: Customer, email: str) -> None:
    await customer.register(email, organization=email)
    async with here.customer() as administrator:
        await administrator.log_in(*ADMIN)
        path = f"/api/admin/organizations/{customer.organization}/credits"
        await administrator.call("POST", path, json={"amount": "25"})


async def with_volume(customer: Customer, name: str, source: bytes) -> tuple[str, str]:
    app = await customer.create(name)
    body = {"name": "data", "path": "/data", "size_mb": 16}
    await customer.call("POST", f"/api/paas/apps/{app}/volumes", json=body)
    ended = await customer.ended(await customer.deploy(app, source))
    assert ended["status"] == "running", (ended["reason"], ended["failed_step"], ended["log_tail"])
    view = await customer.call("GET", f"/api/paas/apps/{app}")
    return app, str(httpx.URL(view["url"]).host)


def container_of(here: Platform, app: str) -> dict[str, Any]:
    [found] = [c for c in here.containers() if c.labels["berth.workload"] == app]
    attributes: dict[str, Any] = found.attrs
    return attributes


def address_in(container: dict[str, Any]) -> str:
    [network] = container["NetworkSettings"]["Networks"].values()
    return str(network["IPAddress"])


def open_here(target: str) -> bool:
    host, _, port = target.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 1):
            return True
    except OSError:
        return False


def to_be_found(here: Platform, *others: str) -> list[str]:
    """Everything that somebody in a container could want to reach."""
    ports = [here.api_port, here.running.nats.port, here.running.postgres.port, here.traefik.port]
    ports += [*here.ops.values(), PORT]
    services = [f"{host}:{port}" for host in addresses() for port in ports]
    outside = [f"{host}:{PORT}" for host in (METADATA, NEIGHBOUR, PARTNER)]
    return [*(f"{other}:8080" for other in others), *services, *outside]


async def attempt(customer: Customer, hostname: str, asked: str) -> dict[str, list[str]]:
    answer = await customer.client.get(
        f"{customer.ingress}/attempt?{asked}",
        headers={"Host": hostname},
        timeout=120,
    )
    assert answer.status_code == 200, answer.text
    found: dict[str, list[str]] = answer.json()
    return found


def known_of_the_engine() -> dict[str, list[str]]:
    """An old one lets everybody open the way to the hypervisor (docs/nodes.md)."""
    client = docker.from_env()
    try:
        major = int(client.version()["Version"].partition(".")[0])
    finally:
        client.close()
    return {"socket": ["vsock"]} if major < 23 else {}


@pytest.mark.promise("P5", "R14.1", "R14.3", "R14.4", "R14.5")
async def test_a_hostile_container_finds_nothing(here: Platform, address: str, world: None) -> None:
    async with here.customer() as victim, here.customer() as attacker:
        await tenant(here, victim, "victim@example.org")
        await tenant(here, attacker, "attacker@example.org")
        hidden, _ = await with_volume(victim, "hidden", hello("a secret"))
        app, hostname = await with_volume(attacker, "hostile", folder(HOSTILE))
        theirs, mine = container_of(here, hidden), container_of(here, app)
        assert theirs["Config"]["User"] != mine["Config"]["User"]
        assert not {*theirs["NetworkSettings"]["Networks"]} & {*mine["NetworkSettings"]["Networks"]}
        targets = to_be_found(here, address_in(theirs))
        pids = [os.getpid(), theirs["State"]["Pid"], *(p.pid for p in here.processes.values())]
        asked = f"{','.join(targets)}/{','.join(map(str, pids))}"

        known = known_of_the_engine()
        assert await attempt(attacker, hostname, asked) == known
        # The same from a command's container.
        ran = await attacker.call(
            "POST", f"/api/paas/apps/{app}/run", json={"command": f"exec python3 /app.py '{asked}'"}
        )

        async def over() -> dict[str, Any] | None:
            view: dict[str, Any] = await attacker.call("GET", f"/api/paas/jobs/{ran['id']}")
            return view if view["status"] not in ("queued", "running") else None

        ended = await eventually(over, seconds=60, every=0.2, what="the end of the command")
        lines = (await attacker.call("GET", f"/api/paas/jobs/{ran['id']}/log"))["lines"]
        assert ended["status"] == "succeeded", lines
        # Its own app is its organization's, and the only neighbour it has.
        assert json.loads(lines[0]["text"]) == {**known, "neighbour": [f"{address_in(mine)}:8080"]}

        # All of it is there, and without the packet rules it is found: so the attempt would have noticed.
        there = {target for target in targets if open_here(target)}
        assert {f"{address}:{here.api_port}", f"{address}:{here.running.nats.port}"} <= there
        assert {f"{address_in(theirs)}:8080", f"{METADATA}:{PORT}", f"{NEIGHBOUR}:{PORT}"} <= there
        await asyncio.to_thread(remove_firewall, (f"{PREFIX.upper()}-",))
        found = await attempt(attacker, hostname, asked)
        assert {f"{address}:{here.api_port}", f"{address}:{here.running.nats.port}"} <= {*found["reached"]}
