"""A registry that a customer names leads the engine to public addresses only, as far as it tells."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from builder.engine_api import EngineApi
from builder.image_builder import StepFailed
from builder.registry import Registries
from builder.registry_address import require_public, token_addresses
from contracts.errors import InvalidInput, Unavailable
from contracts.image_reference import parse
from embedded.certificate import Certificate

PUBLIC = "93.184.216.34"
NAMES = {"registry.example": PUBLIC, "tokens.example": PUBLIC, "inside.example": "10.1.2.3"}

Answer = Callable[[str], Awaitable[list[str]]]


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        # As the real one does: it fails with a label that is too long, or empty.
        host.encode("idna")
        found = NAMES.get(host) or (host if host[0].isdigit() else None)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found, port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.fixture
async def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Answer]:
    """A registry at the public address, as far as we can tell; what it was asked is given back."""
    certificate = Certificate(tmp_path, "registry.example")
    certificate.ensure()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.public, certificate.key)
    connect, servers = asyncio.open_connection, list[asyncio.Server]()

    async def begin(answer: str) -> list[str]:
        asked: list[str] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        servers.append(server)
        port = server.sockets[0].getsockname()[1]

        async def led(host: str, _: int, **named: Any) -> Any:
            assert host == PUBLIC
            return await connect("127.0.0.1", port, **named)

        monkeypatch.setattr(asyncio, "open_connection", led)
        return asked

    yield begin
    for server in servers:
        server.close()
        await server.wait_closed()


def unauthorized(challenge: str) -> str:
    return f"401 Unauthorized\r\nWWW-Authenticate: {challenge}"


async def test_a_registry_that_leads_to_public_addresses_is_asked_once(answering: Answer) -> None:
    asked = await answering(unauthorized('Bearer realm="https://tokens.example/token",service="x"'))
    await require_public("registry.example")
    [request] = asked
    assert request.startswith("GET /v2/ HTTP/1.1\r\n")
    assert "host: registry.example\r\n" in request.lower()


@pytest.mark.parametrize(
    "answer",
    ["200 OK", unauthorized('Basic realm="Registry"'), unauthorized('Basic realm="http://10.0.0.1"')],
)
async def test_one_that_asks_for_no_token_is_public(answering: Answer, answer: str) -> None:
    await answering(answer)
    await require_public("registry.example:443")


@pytest.mark.parametrize(
    "realm",
    [
        "http://127.0.0.1:8500/v1/kv",
        "http://169.254.169.254/latest/meta-data",
        "https://inside.example/token",
        "HTTP://127.0.0.1/",
        r"http:\/\/127.0.0.1/",
        "http://nowhere.example/",
        "http://../",
        "http://tokens.example@127.0.0.1/",
        "http://[::1]/",
        "gopher://127.0.0.1/",
    ],
)
async def test_one_that_gives_its_tokens_on_a_private_address_is_refused(
    answering: Answer, realm: str
) -> None:
    await answering(unauthorized(f'Bearer service="x", realm="{realm}"'))
    with pytest.raises(InvalidInput, match="its registry gives its tokens"):
        await require_public("registry.example")


async def test_one_that_is_private_or_nowhere_or_leads_elsewhere_is_refused(answering: Answer) -> None:
    asked = await answering("307 Temporary Redirect\r\nLocation: http://127.0.0.1/")
    for registry, why in {
        "inside.example": "is on a private address",
        "127.0.0.1:5000": "is on a private address",
        "nowhere.example": "is nowhere: the host nowhere.example does not exist",
        f"{'a' * 64}.example": "is nowhere: a+.example is not a host name",
    }.items():
        with pytest.raises(InvalidInput, match=f"its registry {why}"):
            await require_public(registry)
    assert asked == []
    with pytest.raises(InvalidInput, match="leads to another address"):
        await require_public("registry.example")


async def test_the_engine_is_not_sent_there_unless_the_operator_allows_it(answering: Answer) -> None:
    await answering(unauthorized('Bearer realm="http://169.254.169.254/"'))
    image, why = "registry.example/x:1", "registry.example/x:1: its registry gives its tokens on a private"

    async def say(*_: str) -> None: ...

    async def pull(*, allowed: bool) -> None:
        registries = Registries(EngineApi("unix:///nowhere"), None, allow_private=allowed)
        await registries.pull(parse(image), None, ("berth/x", "1"), say, largest=1)

    async def pull_base(*, allowed: bool, trusted: bool = False) -> None:
        registries = Registries(EngineApi("unix:///nowhere"), None, allow_private=allowed)
        await registries.pull_base(image, say, trusted=trusted)

    for work in (pull(allowed=False), pull_base(allowed=False)):
        with pytest.raises(StepFailed, match=why):
            await work
    for work in (pull(allowed=True), pull_base(allowed=True), pull_base(allowed=False, trusted=True)):
        with pytest.raises(Unavailable, match="the container engine does not answer"):
            await work


async def test_one_that_speaks_no_http_does_not_answer(answering: Answer) -> None:
    await answering("nonsense\r\n\r\n")
    with pytest.raises(InvalidInput, match="its registry does not answer"):
        await require_public("registry.example")


def test_every_address_that_is_told_is_found() -> None:
    told = [
        'Bearer realm="https://a.example/t",realm="http://b.example"',
        "Basic realm=x",
        "Bearer realm=http://c",
    ]
    assert token_addresses(told) == ["https://a.example/t", "http://b.example", "http://c"]
