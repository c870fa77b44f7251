"""Which Git repositories the platform may be sent to fetch.

A URL is data of a stranger that the builder's machine will connect to: HTTPS only, no credentials in it, and
no way into the operator's own networks. The builder looks again when it connects, for a name can change.
"""

import asyncio
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from contracts.api import ChooseGit
from contracts.errors import InvalidInput, Unavailable
from contracts.workload import GitSource

from gateway.desk import Desk

# No space, control character, quote, backslash or non-ASCII letter has a place in the URL of a repository.
_PLAIN = re.compile(r"^[A-Za-z0-9:/._~%@!$&'()*+,;=\[\]-]+$")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


async def checked(desk: Desk, chosen: ChooseGit) -> GitSource:
    host, port = _parts(chosen.url)
    if not desk.settings.allow_private_git:
        await _require_public(desk, host, port)
    return GitSource(url=chosen.url, ref=chosen.ref)


def _parts(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError as error:
        raise _refused(url, "is not a URL") from error
    if parts.scheme != "https" or "::" in url.partition("/")[0]:
        raise _refused(url, "does not begin with https://")
    if "@" in parts.netloc:
        raise _refused(url, "has a user or password in it; leave them out")
    if parts.query or parts.fragment or not _PLAIN.match(url):
        raise _refused(url, "has characters that do not belong in the URL of a repository")
    if not host or "%" in host or not parts.path.strip("/"):
        raise _refused(url, "names no repository")
    return host, port


async def _require_public(desk: Desk, host: str, port: int) -> None:
    try:
        addresses = await desk.resolve(host, port)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Unavailable(f"the name {host} cannot be looked up now; try again") from error
        raise InvalidInput(f"there is no host {host}; check the Git URL", host=host) from error
    except UnicodeError as error:
        raise InvalidInput(f"{host[:100]} is not a host name; check the Git URL", host=host[:100]) from error
    for address in addresses:
        if not is_public(address):
            raise InvalidInput(
                f"{host} has the address {address}, which is not public; use a repository on the internet, "
                "or ask the operator to set GATEWAY_ALLOW_PRIVATE_GIT",
                host=host,
                address=address,
            )


def is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is None and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


async def resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def _refused(url: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"the Git URL {why}; it must look like https://github.com/owner/repository.git", url=url[:200]
    )
