"""Where a registry that a customer names leads the engine: nowhere but to public addresses.

The engine asks from its machine's own network, and fetches a token from whatever address a registry tells it.
So the registry is asked here first, at the address its name stands for, and what it tells is looked at. That
holds for what it tells us: the engine looks the name up again, and follows redirects of what it fetches.
"""

import asyncio
import re
import ssl

import h11
from contracts.errors import InvalidInput, NotFound
from contracts.git_address import is_public

from builder.repository import resolve

_SECONDS = 10
_CHUNK = 64 * 1024
_PORTS = {"https": 443, "http": 80}
_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:(?P<port>[0-9]{1,5}))?")
_REALM = re.compile(r'realm\s*=\s*("(?P<quoted>([^"\\]|\\.)*)"|(?P<bare>[^\s,]*))', re.IGNORECASE)
_ADDRESS = re.compile(rf"(?P<scheme>https?)://{_PLACE.pattern}([/?][!-~]*)?", re.IGNORECASE)


async def require_public(registry: str) -> None:
    """`registry`: host, and port where it has one. Raises `InvalidInput` with what is wrong with it."""
    if (place := _PLACE.fullmatch(registry)) is None:
        raise InvalidInput("its registry has an address that cannot be")
    host, port = place["host"].strip("[]"), int(place["port"] or 443)
    address = await _public(host, port, "is")
    for told in token_addresses(await _challenges(registry, host, port, address)):
        if (found := _ADDRESS.fullmatch(told)) is None:
            raise InvalidInput(f"its registry gives its tokens at an address that cannot be: {told[:200]}")
        port = int(found["port"] or _PORTS[found["scheme"].lower()])
        await _public(found["host"].strip("[]"), port, "gives its tokens")


def token_addresses(challenges: list[str]) -> list[str]:
    """Where those ask for, who want a token. PURE."""
    found = [realm for said in challenges if "bearer" in said.lower() for realm in _REALM.finditer(said)]
    told = [re.sub(r"\\(.)", r"\1", realm["quoted"] or realm["bare"] or "") for realm in found]
    # Of a log-in by password it is no address.
    return [text for text in told if "://" in text]


async def _public(host: str, port: int, does: str) -> str:
    try:
        address = await resolve(host, port)
    except NotFound as error:
        raise InvalidInput(f"its registry {does} nowhere: {error.message}") from error
    if not is_public(address):
        raise InvalidInput(f"its registry {does} on a private address")
    return str(address)


async def _challenges(registry: str, host: str, port: int, address: str) -> list[str]:
    # Whom the engine believes is the engine's to say: nothing is told here, and nothing taken.
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=host)
            try:
                response = await _asked(registry, reader, writer)
            finally:
                writer.close()
    except TimeoutError as error:
        raise InvalidInput(f"its registry does not answer within {_SECONDS} s") from error
    except (OSError, h11.ProtocolError) as error:
        raise InvalidInput(f"its registry does not answer: {error}") from error
    if 300 <= response.status_code < 400:
        raise InvalidInput("its registry leads to another address, and is not followed")
    return [value.decode("latin-1") for name, value in response.headers if name == b"www-authenticate"]


async def _asked(registry: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> h11.Response:
    http = h11.Connection(h11.CLIENT)
    sent = [("Host", registry), ("Connection", "close")]
    writer.write(http.send(h11.Request(method="GET", target="/v2/", headers=sent)) or b"")
    await writer.drain()
    while not isinstance(event := http.next_event(), h11.Response):
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(_CHUNK))
    return event
