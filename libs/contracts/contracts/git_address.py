"""Where a Git repository is, as customers and repositories write it. PURE.

A URL is data of a stranger that the builder will connect to: HTTPS or SSH, no password in it, no character
that means something to a program. Gateway and builder read it by the same rules; who connects looks the host
up once, asks `is_public`, and connects to that very address.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from contracts.errors import InvalidInput

_LONGEST = 2000
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_PLAIN = re.compile(r"[A-Za-z0-9:/._~%@!$&'()*+,;=\[\]-]+")
# What a server's shell sees of it is quoted by Git; it needs no quotes of its own.
_PLAIN_SSH = re.compile(r"[A-Za-z0-9:/._~%@+,=\[\]-]+")
_SCP = re.compile(r"(?P<user>[^@:/]+)@(?P<host>[^@:/\[\]]+):(?P<path>[^:]+)")
_PORTS = {"https": 443, "http": 80, "ssh": 22}
# IPv6 addresses that carry an IPv4 address which decides: NAT64 and 6to4.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Scheme = Literal["https", "http", "ssh"]


@dataclass(frozen=True, slots=True)
class GitAddress:
    """`url` is what Git is given: as it was written."""

    url: str
    scheme: Scheme
    host: str
    port: int

    @property
    def place(self) -> str:
        """Host and port, as known_hosts and the host of a token have them."""
        if self.port == _PORTS[self.scheme]:
            return self.host
        return f"[{self.host}]:{self.port}" if self.scheme == "ssh" else f"{self.host}:{self.port}"


def parse(url: str, *, allow_http: bool = False) -> GitAddress:
    if len(url) > _LONGEST:
        raise _refused(url, "is too long")
    if "://" not in url and (match := _SCP.fullmatch(url)) is not None:
        return _ssh(url, match["user"], match["host"], 22, match["path"])
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _refused(url, "is not a URL") from error
    if parts.query or parts.fragment:
        raise _refused(url, "has characters that do not belong in the URL of a repository")
    if parts.scheme == "ssh" and url.startswith("ssh://"):
        if parts.password is not None:
            raise _refused(url, "has a password in it; SSH needs a key")
        return _ssh(url, parts.username or "git", host, port or 22, parts.path)
    schemes = ("https", "http") if allow_http else ("https",)
    if parts.scheme not in schemes or "::" in url.partition("/")[0]:
        raise _refused(url, "does not begin with https:// or ssh://")
    if "@" in parts.netloc:
        raise _refused(url, "has a user or password in it; leave them out, and give a token by itself")
    if not _PLAIN.fullmatch(url):
        raise _refused(url, "has characters that do not belong in the URL of a repository")
    scheme: Scheme = "https" if parts.scheme == "https" else "http"
    return _checked(url, scheme, host, port or _PORTS[scheme], parts.path)


def _ssh(url: str, user: str, host: str, port: int, path: str) -> GitAddress:
    if not _PLAIN_SSH.fullmatch(url) or not _USER.fullmatch(user):
        raise _refused(url, "has characters that do not belong in the URL of a repository")
    return _checked(url, "ssh", host, port, path)


def _checked(url: str, scheme: Scheme, host: str, port: int, path: str) -> GitAddress:
    if not (_HOST.fullmatch(host) or is_address(host)) or not path.strip("/") or path.startswith("-"):
        raise _refused(url, "names no repository")
    return GitAddress(url, scheme, host.lower(), port)


def beside(url: str, other: str) -> str:
    """What `other`, found in the repository at `url`, means: it may begin with `./` or `../`."""
    if not other.startswith(("./", "../")):
        return other
    base, joint = url.rstrip("/"), "/"
    while other.startswith(("./", "../")):
        climbs, _, other = other.partition("/")
        if climbs == "..":
            joint = "/" if "/" in base.rpartition("://")[2] else ":"
            base = base.rpartition(joint)[0]
    return f"{base}{joint}{other}"


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: IpAddress) -> bool:
    """Nothing of the operator's own, nor of this machine."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def _refused(url: str, why: str) -> InvalidInput:
    return InvalidInput(
        f"the Git URL {why}; it must look like https://github.com/owner/repository.git or "
        "git@github.com:owner/repository.git",
        url=url[:200],
    )
