"""A workload's routes as a file for Traefik's file provider, and the file they all hang from. PURE.

Traefik tries its routers one after another, so hostnames are spread over parents by their first characters:
a request is compared with the parents, then with the few hostnames below one. Every workload's file also
answers a secret hostname with the digest of its own content: so what the proxy serves can be asked of it.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from contracts.errors import InvalidInput

HEADER = "X-Berth-Routes"
ENTRY_POINT = "web"
_HOSTNAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)
_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}:\d{1,5}")
_WWW = "www."


@dataclass(frozen=True, slots=True)
class Served:
    """What the ingress does for a workload: its hostnames lead to these addresses (`ip:port`), in turn."""

    workload: str
    hostnames: tuple[str, ...]
    addresses: tuple[str, ...]


def is_hostname(text: str) -> bool:
    return _HOSTNAME.fullmatch(text) is not None


def shard(hostname: str) -> str:
    """Which parent a hostname is below. The many that begin with "www." are spread by what comes next."""
    if hostname.startswith(_WWW):
        return _WWW + hostname[len(_WWW) :][:2]
    return hostname[:2]


def confirm_path(workload: str) -> str:
    return f"/{workload}"


def digest(served: Served) -> str:
    return _digest(_content(served))


def render(served: Served) -> str:
    """The file of one workload: JSON, which is YAML too."""
    content = _content(served)
    marker = {"headers": {"customResponseHeaders": {HEADER: _digest(content)}}}
    return _text({"http": {**content, "middlewares": {f"{served.workload}-confirm": marker}}})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()[:16]


def _content(served: Served) -> dict[str, Any]:
    _check(served)
    name = served.workload
    routers: dict[str, Any] = {
        f"{name}-confirm": {
            "rule": f"Path(`{confirm_path(name)}`)",
            "parentRefs": ["confirm"],
            "middlewares": [f"{name}-confirm"],
            "service": "noop@internal",
        }
    }
    for hostname in sorted(served.hostnames):
        routers[f"{name}-{hostname}"] = {
            "rule": f"Host(`{hostname}`)",
            "parentRefs": [_parent(shard(hostname))],
            "middlewares": ["retry"],
            "service": name,
        }
    service = {
        "loadBalancer": {
            "servers": [{"url": f"http://{address}"} for address in sorted(served.addresses)],
            "serversTransport": "instances",
        }
    }
    return {"routers": routers, "services": {name: service}}


def render_common(secret: str, shards: Iterable[str], certificate: str) -> str:
    """What every workload's file refers to; and a certificate, so that Traefik makes none by itself."""
    routers: dict[str, Any] = {
        "confirm": {"rule": f"Host(`{secret}`)", "entryPoints": [ENTRY_POINT], "priority": 10_000}
    }
    for key in shards:
        pattern = key.replace(".", "[.]")
        # A longer key is the more special one: "www.ab" is asked before "ww".
        routers[_parent(key)] = {
            "rule": f"HostRegexp(`^{pattern}`)",
            "entryPoints": [ENTRY_POINT],
            "priority": len(key),
        }
    # Traefik complains of a parent without children; this child of each is nobody's.
    routers |= {
        f"{parent}-nobody": {
            "rule": f"Host(`{secret}`)",
            "parentRefs": [parent],
            "priority": 1,
            "service": "noop@internal",
        }
        for parent in routers
    }
    return _text(
        {
            "http": {
                "routers": dict(sorted(routers.items())),
                # Only a request that never reached an instance is tried again, on the next one.
                "middlewares": {"retry": {"retry": {"attempts": 3, "initialInterval": "50ms"}}},
                "serversTransports": {
                    "instances": {
                        "forwardingTimeouts": {
                            "dialTimeout": "3s",
                            # Shorter than what servers keep idle connections for, so that none is used in
                            # the moment it is closed; and a leaving instance is rid of them soon.
                            "idleConnTimeout": "1s",
                        }
                    }
                },
            },
            "tls": {
                "stores": {
                    "default": {"defaultCertificate": {"certFile": certificate, "keyFile": certificate}}
                }
            },
        }
    )


def shards_of(hostnames: Iterable[str]) -> set[str]:
    return {shard(hostname) for hostname in hostnames}


def hostnames_in(text: str) -> Collection[str]:
    """The hostnames in a file that `render` has made."""
    rules = [router["rule"] for router in json.loads(text)["http"]["routers"].values()]
    return [rule[6:-2] for rule in rules if rule.startswith("Host(")]


def _parent(key: str) -> str:
    return f"shard-{key}"


def _check(served: Served) -> None:
    # Traefik runs its files through a template engine, and one broken file stops the loading of all.
    for hostname in served.hostnames:
        if not is_hostname(hostname):
            raise InvalidInput(f"not a hostname: {hostname!r}")
    for address in served.addresses:
        if not _ADDRESS.fullmatch(address):
            raise InvalidInput(f"not an address: {address!r}")


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
