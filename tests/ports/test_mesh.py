"""What ingresses keep to between nodes, on real Traefiks: one hop, both ends known, and nothing lost."""

import asyncio
import itertools
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from contracts.ids import new_id
from contracts.mesh import name_of
from embedded.traefik import MeshPorts, Traefik
from node_agent.certificate import ask
from node_agent.ingress import TraefikProxy
from node_agent.mesh_file import Credentials, Mesh
from node_agent.routes_file import Served
from runtime.clock import SystemClock
from scheduler.authority import Authority

from tests.harness import eventually, free_port
from tests.ports.web import Load, get

HOST = "app.example.com"
OURS = Authority("the key of this platform, as long as it has to be")
THEIRS = Authority("the key of another platform, just as long as ours")

_UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@dataclass
class Node:
    """An ingress, and what its agent would know of the others."""

    name: str
    traefik: Traefik
    ports: MeshPorts
    nodes: "dict[str, Node]"
    known: dict[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    credentials: Credentials | None = None
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.proxy = TraefikProxy(
            self.traefik.routes, f"http://127.0.0.1:{self.traefik.port}", SystemClock(), neighbours=self
        )

    def shares(self, workload: str) -> tuple[tuple[str, int], ...]:
        return self.known.get(workload, ())

    def mesh(self, nodes: set[str]) -> Mesh:
        where = {node: f"127.0.0.1:{self.nodes[node].ports.port}" for node in nodes if node in self.nodes}
        return Mesh(self.ports.here, self.credentials, {node: where.get(node) for node in nodes})

    def took(self, seconds: float) -> None:
        assert seconds < 10

    def certify(
        self, authority: Authority = OURS, at: datetime | None = None, name: str | None = None
    ) -> None:
        """As of this moment, in new files."""
        request = ask()
        made, _ = authority.certify(name or self.name, request, at or datetime.now(UTC))
        folder = self.traefik.folder
        own = folder / f"own{next(self.numbers)}.pem"
        own.write_text(made + request[request.index("-----BEGIN PRIVATE") :])
        trusted = own.with_suffix(".authority")
        trusted.write_text(OURS.pem)
        self.credentials = Credentials(str(own), str(trusted))

    async def turns(self, number: int) -> Counter[str]:
        found = [await get(self.traefik.port, HOST) for _ in range(number)]
        return Counter(body.split()[0] if status == 200 else str(status) for status, body in found)


class Instance:
    """Answers with its name and what it was asked; or takes an upgrade, and says back what it is told."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if b"\r\nupgrade: websocket" in head.lower():
                    writer.write(_UPGRADED)
                    while said := await reader.read(1000):
                        writer.write(self.name.encode() + b" " + said)
                    return
                body = self.name.encode() + b"\n" + head
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def instance(name: str) -> AsyncIterator[str]:
    made = Instance(name)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@pytest.fixture
async def machines(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[list[tuple[Traefik, MeshPorts]]]:
    """Ingresses of each test's own: one that has yet to read that files are gone answers for new ones."""
    made = []
    try:
        for _ in range(2):
            ports = MeshPorts("127.0.0.1", free_port(), free_port())
            server = Traefik(tmp_path_factory.mktemp("mesh"), free_port(), free_port(), mesh=ports)
            made.append((server, ports))
            server.start()
            await asyncio.to_thread(server.wait_ready)
        yield made
    finally:
        for server, _ in made:
            server.stop()


@pytest.fixture
async def pair(machines: list[tuple[Traefik, MeshPorts]]) -> tuple[Node, Node]:
    """One that runs what the other one only knows of."""
    nodes: dict[str, Node] = {}
    for name, (traefik, ports) in zip(("far", "near"), machines, strict=True):
        nodes[name] = Node(name, traefik, ports, nodes)
        nodes[name].certify()
        await nodes[name].proxy.open()
    return nodes["far"], nodes["near"]


async def told(far: Node, near: Node, *addresses: str) -> str:
    """A workload that runs on the far one; `near` answers for it when this returns."""
    workload = new_id("app")
    await far.proxy.publish(Served(workload, (HOST,), addresses))
    near.known[workload] = (("far", len(addresses)),)
    assert await near.proxy.spread({workload: (HOST,)}) == set()

    async def answers() -> bool:
        return (await get(near.traefik.port, HOST))[0] == 200

    await eventually(answers, what="an answer from the other node")
    return workload


@pytest.mark.promise("R13.2")
async def test_what_is_said_of_a_visitor_is_true_wherever_he_enters(pair: tuple[Node, Node]) -> None:
    far, near = pair
    async with instance("one") as address:
        await told(far, near, address)
        entered_far, entered_near = await asked(far.traefik.port), await asked(near.traefik.port)
    assert entered_near["host"] == HOST
    # Neither the visitor's own words nor those of the hop.
    assert (entered_near["x-forwarded-for"], entered_near["x-real-ip"]) == ("127.0.0.1", "127.0.0.1")
    assert "x-secret" not in entered_near
    for name in ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"):
        assert entered_near[name] == entered_far[name], name


async def asked(port: int) -> dict[str, str]:
    """The headers that arrive from a visitor who lies."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-Ip: 6.6.6.6\r\n"
        "X-Forwarded-Host: evil\r\nX_Forwarded_For: 6.6.6.6\r\nConnection: close\r\n\r\n".encode()
    )
    text = (await reader.read()).decode().partition("\r\n\r\n")[2]
    writer.close()
    pairs = [line.partition(": ") for line in text.splitlines()[2:] if ": " in line]
    assert len({name.lower() for name, _, _ in pairs}) == len(pairs)
    assert not [name for name, _, _ in pairs if "_" in name]
    return {name.lower(): value for name, _, value in pairs}


async def test_a_conversation_goes_on_over_the_hop(pair: tuple[Node, Node]) -> None:
    far, near = pair
    async with instance("one") as address:
        await told(far, near, address)
        reader, writer = await asyncio.open_connection("127.0.0.1", near.traefik.port)
        writer.write(
            f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        for word in (b"hello", b"again"):
            writer.write(word)
            assert await reader.readexactly(9) == b"one " + word
        writer.close()


@pytest.mark.promise("R17.3")
async def test_every_instance_of_both_nodes_has_its_turn(pair: tuple[Node, Node]) -> None:
    far, near = pair
    async with instance("one") as one, instance("two") as two, instance("three") as three:
        workload = await told(far, near, one, two)
        await near.proxy.publish(Served(workload, (HOST,), (three,)))
        far.known[workload] = (("near", 1),)
        await far.proxy.spread({workload: ()})

        async def even() -> bool:
            found = [await node.turns(30) for node in pair]
            return found == [Counter(one=10, two=10, three=10)] * 2

        await eventually(even, what="turns that are even")


async def test_whoever_has_no_certificate_of_ours_gets_nothing(pair: tuple[Node, Node]) -> None:
    far, near = pair
    async with instance("one") as address:
        await told(far, near, address)
        # Of another platform; and of ours, until a moment ago.
        for authority, at in ((THEIRS, None), (OURS, datetime.now(UTC) - timedelta(hours=49))):
            near.certify(authority, at)
            await near.proxy.spread({})

            async def refused() -> bool:
                return (await get(near.traefik.port, HOST))[0] != 200

            await eventually(refused, what="a refusal")
            assert near.credentials is not None
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=OURS.pem)
            context.load_cert_chain(near.credentials.certificate)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await answer_of(far.ports.port, context)
            near.certify()
            await near.proxy.spread({})
            await eventually(lambda: served(near), what="an answer again")


async def served(node: Node) -> bool:
    return (await get(node.traefik.port, HOST))[0] == 200


async def answer_of(port: int, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name_of("far")
    )
    try:
        writer.write(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        return await reader.readexactly(1)
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError from error
    finally:
        writer.close()


async def test_one_who_says_he_is_another_node_is_not_sent_anything(pair: tuple[Node, Node]) -> None:
    far, near = pair
    # A node of ours, at the address of another.
    far.certify(name="near")
    await far.proxy.spread({})
    async with instance("one") as address:
        workload = new_id("app")
        await far.proxy.publish(Served(workload, (HOST,), (address,)))
        near.known[workload] = (("far", 1),)
        await near.proxy.publish(Served(workload, (HOST,), ()))
        assert {(await get(near.traefik.port, HOST))[0] for _ in range(5)} <= {500, 502, 503}
        far.certify()
        await far.proxy.spread({})
        await eventually(lambda: served(near), what="an answer")


async def test_a_new_certificate_costs_no_request(pair: tuple[Node, Node]) -> None:
    far, near = pair
    async with instance("one") as address:
        await told(far, near, address)
        async with Load(near.traefik.port, HOST, connections=4) as load:
            for node in (far, near, far, near):
                node.certify()
                await node.proxy.spread({})
                await asyncio.sleep(0.3)
            await load.more(100)
        assert load.failed == 0, {answer for answer in load.answers if answer[0] != 200}


async def test_a_node_that_nobody_knows_any_more_takes_none_of_the_others_requests(
    pair: tuple[Node, Node],
) -> None:
    far, near = pair
    async with instance("one") as address:
        workload = await told(far, near, address)
        near.known[workload] = (("far", 1), ("third", 1))
        assert await near.proxy.spread({workload: (HOST,)}) == set()
        await asyncio.sleep(1)
        assert await near.turns(20) == {"one": 20}


async def test_a_change_of_one_of_many_writes_one_file(pair: tuple[Node, Node], tmp_path: Path) -> None:
    _, near = pair
    many = {new_id("app"): (f"{n:03}.example.com",) for n in range(300)}
    other = ("third", 1)
    near.known.update(dict.fromkeys(many, (("far", 1), other)))
    assert await near.proxy.spread(many) == set()

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in near.traefik.routes.iterdir()}

    before = await asyncio.to_thread(files)
    assert len(before) == 301
    changed = next(iter(many))
    near.known[changed] = (("far", 2), other)
    await near.proxy.spread(many)
    after = await asyncio.to_thread(files)
    assert {name for name in after if after[name] != before.get(name)} == {f"{changed}.yaml"}
    # One that cannot be written stops no other, and the next agent takes over what there is.
    first, second = list(many)[:2]
    near.known[first], near.known[second] = (("{{", 1),), (("far", 3), other)
    assert await near.proxy.spread({first: many[first], second: many[second]}) == set()
    following = Node("near", near.traefik, near.ports, near.nodes, near.known, near.credentials)
    await following.proxy.open()
    assert following.proxy.published() == set()
    near.known[first] = (("far", 1), other)
    await following.proxy.spread(many)
    kept = await asyncio.to_thread(files)
    assert {name for name in kept if kept[name] != after[name]} <= {f"{first}.yaml", f"{second}.yaml"}
    await following.proxy.spread(dict.fromkeys(many, ()))
    assert list(await asyncio.to_thread(files)) == ["common.yaml"]
