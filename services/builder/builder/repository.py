"""Where a repository may be fetched from: over TLS, without credentials in its address, from the internet.

The gateway has looked at the address before; what its name stands for is decided here, once, and the fetch is
held to that answer: a name that changes its mind in between gains nothing.
"""

import asyncio
import ipaddress
import re
import socket
from urllib.parse import urlsplit

from contracts.errors import NotFound, Unavailable
from contracts.workload import GitSource

from builder.image_builder import Repository, StepFailed

_REF = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}$")
_HOST = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?$")
_PATH = re.compile(r"^/[!-~]*$")
# IPv6 addresses that carry an IPv4 address which decides: NAT64 and 6to4.
_CARRIERS = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("2002::/16"))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


async def check(source: GitSource, *, allow_private: bool) -> Repository:
    if len(source.url) > 2000 or any(not 32 < ord(character) < 127 for character in source.url):
        raise _refused("has characters an address cannot have")
    try:
        parts = urlsplit(source.url)
        port, host = parts.port, parts.hostname or ""
    except ValueError:
        raise _refused("is not a valid address") from None
    if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not allow_private):
        raise _refused("must begin with https://")
    if parts.username is not None or parts.password is not None:
        raise _refused("must not carry a user name or password")
    if not _HOST.match(host) and not _is_address(host):
        raise _refused("names no valid host")
    if not _PATH.match(parts.path) or "\\" in source.url or parts.fragment:
        raise _refused("names no valid path")
    if source.ref is not None and not _REF.match(source.ref):
        raise StepFailed("source", "the branch, tag or commit has characters it cannot have")
    try:
        address = await resolve(host, port or (443 if parts.scheme == "https" else 80))
    except NotFound as error:
        raise _refused(f"leads nowhere: {error.message}") from error
    if not is_public(address):
        if not allow_private:
            raise _refused("leads to a private address")
    elif parts.scheme == "http":
        raise _refused("must begin with https:// outside of private networks")
    return Repository(source.url, host, str(address), source.ref)


async def resolve(host: str, port: int) -> Address:
    """One address, an IPv4 one where there is a choice; private if any of them is."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise NotFound(f"the host {host} does not exist") from error
        raise Unavailable(f"the host {host} could not be looked up: {error.strerror}") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return min(addresses, key=lambda address: (is_public(address), address.version))


def is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _CARRIERS[0]:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if address in _CARRIERS[1]:
            return is_public(ipaddress.IPv4Address((int(address) >> 80) & 0xFFFFFFFF))
    return address.is_global and not address.is_multicast


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(why: str) -> StepFailed:
    return StepFailed("source", f"the repository's address {why}")
