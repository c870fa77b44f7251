"""A clean server becomes a node by the script, runs an app, and is clean again."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx
import nats
import orjson
import pytest
from contracts.events import BuildFinished, DeploymentRequested
from contracts.ids import new_id
from contracts.mesh import Peer, name_of
from contracts.workload import BuildSucceeded
from embedded.wheels import postgres

from tests.customer import Customer, Refused, archive
from tests.harness import EVERYTHING, SECRET, eventually
from tests.nodes.machines import PROBE, Server, network, server
from tests.platform import ADMIN, Platform, platform

CONTROL_PLANE = ("gateway", "scheduler", "domains", "billing")


@dataclass
class Estate:
    platform: Platform
    # Of this machine, for the servers.
    host: str

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.platform.api_port}"


@pytest.fixture(scope="module")
def here() -> Iterator[str]:
    with network() as address:
        yield address


@pytest.fixture(scope="module")
async def estate(here: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Estate]:
    """The control plane alone: this machine is no node of it."""
    folder = tmp_path_factory.mktemp("estate")
    async with platform(folder, "local", CONTROL_PLANE, public_host=here) as running:
        yield Estate(running, here)


@pytest.fixture(scope="module")
def machine(here: str) -> Iterator[Server]:
    with server("edge-1") as found:
        yield found


@pytest.fixture
async def administrator(estate: Estate) -> AsyncIterator[Customer]:
    async with estate.platform.customer() as customer:
        await customer.log_in(*ADMIN)
        yield customer


async def node(administrator: Customer, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await administrator.call("GET", f"/api/admin/paas/nodes/{name}"))["node"]
    return found


@pytest.mark.promise("R3.2", "R3.3", "R3.4", "K11", "P2", "P3")
async def test_a_clean_server_becomes_a_node_runs_an_app_and_is_clean_again(
    estate: Estate, machine: Server, administrator: Customer
) -> None:
    before = await asyncio.to_thread(traces, machine)
    made = await administrator.call(
        "POST", "/api/admin/paas/join-tokens", json={"region": "edge", "labels": {"disk": "nvme"}}
    )
    script = await administrator.client.get(f"{estate.url}/install/node.sh")
    assert script.text.startswith("#!/bin/bash\n")
    machine.put("/root/node.sh", script.content)
    token = {"BERTH_JOIN_TOKEN": made["token"]}
    said = await asyncio.to_thread(machine.run, "bash", "/root/node.sh", told=token)
    assert "edge-1 is ready" in said
    assert made["token"] not in said

    async def online() -> bool:
        # It is ready a moment before it is heard.
        listed = (await administrator.call("GET", "/api/admin/paas/nodes"))["nodes"]
        return any((one["name"], one["status"]) == ("edge-1", "online") for one in listed)

    await eventually(online, what="the node online")
    view = await node(administrator, "edge-1")
    assert (view["region"], view["labels"], view["address"]) == ("edge", {"disk": "nvme"}, machine.address)
    assert view["engine"].startswith("Docker ")
    assert view["agent"]
    await others_reach_it(estate, machine)
    # Again: nothing is asked, nothing changes.
    again = await asyncio.to_thread(machine.run, "bash", "/root/node.sh")
    assert "edge-1 is ready" in again
    assert len((await administrator.call("GET", "/api/admin/paas/nodes"))["nodes"]) == 1

    assert "NATS_URL=tls://" in machine.run("cat", "/etc/berth-node/agent.env")

    machine.load_probe()
    machine.make_devices()
    await runs_an_app(estate, machine, administrator)
    await it_is_looked_after(administrator)

    removed = await asyncio.to_thread(machine.run, "bash", "/root/node.sh", "--remove")
    assert "nothing of the platform is left" in removed
    assert await asyncio.to_thread(traces, machine) == before
    await administrator.call("DELETE", "/api/admin/paas/nodes/edge-1?force=true")
    assert (await administrator.call("GET", "/api/admin/paas/nodes"))["nodes"] == []


async def others_reach_it(estate: Estate, machine: Server) -> None:
    """At the address it joined from; and whoever is no node is not spoken to there."""
    client = await nats.connect(estate.platform.running.nats.url, user=EVERYTHING, password=SECRET)
    try:
        peers = await client.jetstream().key_value("peers")

        async def known() -> Peer | None:
            with suppress(nats.js.errors.KeyNotFoundError):
                return Peer.model_validate_json((await peers.get("edge-1")).value or b"")
            return None

        peer = await eventually(known, what="edge-1 among its peers")
    finally:
        await client.close()
    assert (peer.host, peer.port) == (machine.address, 7443)
    anybody = ssl.create_default_context(cadata=peer.authority)

    async def refused() -> bool:
        name = name_of("edge-1")
        try:
            # It proves who it is, and then asks for the same.
            reader, writer = await asyncio.open_connection(
                machine.address, peer.port, ssl=anybody, server_hostname=name
            )
        except ssl.SSLCertVerificationError:
            return False
        with suppress(ssl.SSLError, ConnectionError):
            writer.write(b"GET / HTTP/1.1\r\nHost: probe.localhost\r\n\r\n")
            assert await reader.read() == b""
        writer.close()
        return True

    await eventually(refused, what="the certificate of edge-1 at its ingress")


async def runs_an_app(estate: Estate, machine: Server, administrator: Customer) -> None:
    async with estate.platform.customer() as customer:
        await customer.register("edge@example.org")
        await administrator.call(
            "POST",
            f"/api/admin/organizations/{customer.organization}/credits",
            json={"amount": "10", "note": "to begin"},
        )
        app = await customer.create("probe", region="edge", port=8080, retry=True)
        volume = {"name": "data", "path": "/data", "size_mb": 16}
        await customer.call("POST", f"/api/paas/apps/{app}/volumes", json=volume)
        await customer.deploy(app, archive({"app": "x"}))
        await built(estate, app)

        async def live() -> dict[str, Any] | None:
            view: dict[str, Any] = await customer.call("GET", f"/api/paas/apps/{app}")
            assert view["status"] != "failed", (view, machine.log())
            return view if view["status"] == "running" else None

        try:
            view = await eventually(live, seconds=30, every=0.2, what="the app")
        except AssertionError:
            deployments = await customer.call("GET", f"/api/paas/apps/{app}/deployments")
            raise AssertionError(f"{deployments}\n{machine.log()}") from None
        host = httpx.URL(view["url"]).host
        answer = await customer.client.get(f"http://{machine.address}/", headers={"Host": host})
        assert answer.status_code == 200
        # What it says reaches its customer, and what the agent says the administrator.
        await it_is_heard(customer, administrator, app)
        (volume,) = (await customer.call("GET", f"/api/paas/apps/{app}/volumes"))["volumes"]
        assert volume["name"] == "data"
        mounted = machine.run("bash", "-c", "grep ext4 /proc/self/mountinfo")
        assert f"/volumes/mounts/{volume['id']} " in mounted
        # Nobody's root out here: the engine maps the instance's users beyond every one of the server's own.
        owner = machine.run("bash", "-c", "stat -c %u /proc/$(pgrep -f '^/server')")
        assert int(owner) > 1073741824 + 100_000


async def it_is_looked_after(administrator: Customer) -> None:
    """What is on it and what it has; and it is emptied, as far as there is somewhere to go."""
    at = "/api/admin/paas/nodes/edge-1"
    regions = (await administrator.call("GET", "/api/paas/locations"))["regions"]
    assert "edge" in [region["name"] for region in regions]

    async def seen() -> dict[str, Any] | None:
        found: dict[str, Any] = await administrator.call("GET", at)
        return found if found["node"]["instances"] else None

    view = await eventually(seen, seconds=40, what="its instance")
    assert view is not None
    assert [placed["process"] for placed in view["placements"]] == ["web"]
    assert 0 < view["node"]["used"]["memory_mb"] < view["node"]["capacity"]["memory_mb"]
    assert view["node"]["allocated"]["memory_mb"] == view["placements"][0]["limits"]["memory_mb"]
    drained = await administrator.call("POST", f"{at}/drain")
    assert (drained["draining"], drained["placements"], drained["drain_total"]) == (True, 1, 1)
    regions = (await administrator.call("GET", "/api/paas/locations"))["regions"]
    assert "edge" not in [region["name"] for region in regions]
    assert not (await administrator.call("POST", f"{at}/enable"))["draining"]
    with pytest.raises(Refused) as refused:
        await administrator.call("DELETE", at)
    assert refused.value.status == 409


async def it_is_heard(customer: Customer, administrator: Customer, app: str) -> None:
    """What it says by its customer, and what the agent says by the administrator."""

    async def at(caller: Customer, path: str, text: str) -> bool:
        page = await caller.call("GET", path)
        return any(text in line["text"] for line in page["lines"])

    said = f"/api/paas/apps/{app}/logs?stream=stderr"
    await eventually(lambda: at(customer, said, "Starting nats-server"), what="its first words")
    log = "/api/admin/paas/nodes/edge-1/logs"
    await eventually(lambda: at(administrator, log, "nats connected"), what="the agent's words")


async def built(estate: Estate, app: str) -> None:
    """Plays the builder: the image is at the node's engine already."""
    client = await nats.connect(estate.platform.running.nats.url, user=EVERYTHING, password=SECRET)
    try:
        js = client.jetstream()

        async def asked() -> DeploymentRequested | None:
            try:
                found = await js.get_last_msg("EVENTS", DeploymentRequested.name)
            except nats.js.errors.NotFoundError:
                return None
            return DeploymentRequested.model_validate_json(found.data or b"")

        request = await eventually(asked, what="the deployment")
        assert request.workload == app
        event = BuildFinished(
            build=new_id("bld"),
            deployment=request.deployment,
            workload=app,
            organization=request.organization,
            seconds=1,
            result=BuildSucceeded(image=PROBE, digest="sha256:0", size_bytes=1, recipe="docker"),
        )
        await js.publish(event.subject(), orjson.dumps(event.model_dump(mode="json")))
    finally:
        await client.close()


def traces(machine: Server) -> dict[str, str]:
    """What the platform could leave on a server."""
    return {
        "files": machine.run(
            "bash",
            "-c",
            "ls -d /{etc,var/lib,opt,run}/berth-node /usr/local/sbin/berth-node /etc/docker/daemon.json"
            " /etc/systemd/system/berth-* 2>/dev/null || true",
        ),
        "users": machine.run("bash", "-c", "grep -h berth /etc/passwd /etc/subuid /etc/subgid || true"),
        "processes": machine.run("bash", "-c", "pgrep -l 'berth|traefik|dockerd|containerd|server' || true"),
        "rules": machine.run("bash", "-c", "(iptables-save; ip6tables-save) | grep BERTH || true"),
        "mounts": machine.run("bash", "-c", "grep berth /proc/self/mountinfo || true"),
    }


async def test_nobody_tries_tokens_for_long(estate: Estate) -> None:
    async with estate.platform.customer() as guesser:
        answers = [
            await guesser.client.post("/api/nodes/join", json={"token": f"berth_{n}", "key": "k" * 40})
            for n in range(11)
        ]
    assert [answer.status_code for answer in answers] == [403] * 10 + [429]
    assert len({answer.text for answer in answers[:10]}) == 1


PASSWORD = "the provider's own, 7391"


@pytest.mark.promise("P1")
async def test_a_server_is_made_a_node_over_ssh(estate: Estate, administrator: Customer) -> None:
    with server("edge-2") as machine:
        await asyncio.to_thread(machine.open_ssh, PASSWORD)
        at = {"address": machine.address, "port": 22}
        shown = await administrator.call("POST", "/api/admin/paas/servers/key", json=at)
        assert shown["fingerprint"] == machine.fingerprint()
        order = {**at, "fingerprint": shown["fingerprint"], "password": PASSWORD, "region": "edge"}

        # One who stands in between has another key: he is told nothing.
        another = f"SHA256:{'A' * 43}"
        (*_, end) = await steps(administrator, {**order, "fingerprint": another})
        assert (end["kind"], "another key" in end["text"]) == ("failed", True)
        (*_, end) = await steps(administrator, {**order, "password": "a guess"})
        assert (end["kind"], "refuses root" in end["text"]) == ("failed", True)

        told = await steps(administrator, {**order, "labels": {"rack": "7"}})
        assert (told[-1]["kind"], told[-1]["details"]) == ("joined", {"node": "edge-2"}), told
        texts = [step["text"] for step in told if step["kind"] == "step"]
        assert texts[0] == f"connecting to {machine.address}"
        assert [text for text in texts if text in ("installing the agent", "joined as edge-2")]
        view = await node(administrator, "edge-2")
        assert (view["status"], view["labels"]) == ("online", {"rack": "7"})

        # It was used, and is nowhere: not in what was said, not in a log, not in a table, not on the server.
        assert PASSWORD not in repr(told)
        assert PASSWORD not in estate.platform.log_of("+".join(CONTROL_PLANE))
        dump = await asyncio.to_thread(dump_of, estate)
        assert "edge-2" in dump
        assert PASSWORD not in dump
        tokens = (await administrator.call("GET", "/api/admin/paas/join-tokens"))["tokens"]
        # Each has been used or revoked: none is left lying about.
        assert all(token["revoked_at"] for token in tokens[:3])
        # Cut off: it reads and writes nothing any more.
        await administrator.call("DELETE", "/api/admin/paas/nodes/edge-2")
        await asyncio.sleep(1)
        assert machine.tries("/usr/local/sbin/berth-node", "status")[0] == 1


def dump_of(estate: Estate) -> str:
    database = estate.platform.running.postgres.url(database="berth")
    done = subprocess.run([postgres("pg_dump"), database], capture_output=True, check=True)
    return done.stdout.decode(errors="replace")


async def steps(administrator: Customer, order: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    asked = administrator.client.stream(
        "POST", "/api/admin/paas/servers", json=order, headers=administrator.headers, timeout=240
    )
    async with asked as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found.append(orjson.loads(line[6:]))
    return found
