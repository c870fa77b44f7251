"""The parts of the ingress's files that lead to other nodes, and from them to here. PURE.

Nodes speak TLS with certificates on both ends. At the entry point `mesh` the connection is taken for a
plain stream, because Traefik chooses what it asks of a client by the name the client wants, and a stream
asks the same of everybody; the stream leads to the entry point `here`, on loopback, where hostnames lead
to instances of this node alone. So a request crosses once, and what it says of its visitor is believed
from a node only.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from contracts.errors import InvalidInput
from contracts.mesh import MESH, name_of

ENTRY_POINT = "mesh"
HERE = "here"
RETRY = "retry-elsewhere"
# What `noop@internal` answers.
_TEAPOT = 418
_NODE = re.compile(r"[a-z0-9-]{1,40}")
_REACHED = re.compile(r"([A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:]{2,45}\]):\d{1,5}")
# Refuses at once, and so the next one is asked; a service without any server would answer itself, by 503.
_NOBODY = "http://127.0.0.1:1"
# Traefik passes over a node that does not answer only where all of a service's parts are checked. Instances
# are checked by the agent: for Traefik the first check of one never comes.
_NEVER = "87600h"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Files: this node's certificate with its key, and the authority all of them are known by."""

    certificate: str
    authority: str


@dataclass(frozen=True, slots=True)
class Mesh:
    # Of the entry point `here`.
    port: int
    credentials: Credentials | None = None
    # Node -> where its ingress is reached by the others; none where nobody knows any more.
    peers: Mapping[str, str | None] = field(default_factory=dict)


def services(
    name: str, here: str, instances: dict[str, Any], number: int, elsewhere: Iterable[tuple[str, int]]
) -> dict[str, Any]:
    """The services of a workload that also has instances on other nodes: each instance gets its turn."""
    parts = [{"name": _peer(node), "weight": count} for node, count in elsewhere]
    found: dict[str, Any] = {}
    if number:
        checked = {**instances, "healthCheck": {"path": "/", "interval": _NEVER}}
        found[here] = {"loadBalancer": checked}
        parts.insert(0, {"name": here, "weight": number})
    found[name] = {"weighted": {"services": parts, "healthCheck": {}}}
    return found


def check(node: str) -> None:
    if not _NODE.fullmatch(node):
        raise InvalidInput(f"not a node: {node!r}")


def everywhere(name: str) -> str:
    """The service of a workload that has instances on other nodes too."""
    return f"{name}-everywhere"


def only(elsewhere: Sequence[tuple[str, int]]) -> str | None:
    """The service of the one node that has all of it."""
    return _peer(elsewhere[0][0]) if len(elsewhere) == 1 else None


def peers_in(services: Iterable[str]) -> set[str]:
    """The nodes among the services that something leads to."""
    return {name.removeprefix(_peer("")) for name in services if name.startswith(_peer(""))}


def http(mesh: Mesh) -> dict[str, Any]:
    peers = sorted(mesh.peers.items())
    if mesh.credentials is None:
        # Without a certificate nobody is asked, and what leads to a node must still be there.
        peers = [(node, None) for node, _ in peers]
    # The more of them there are, the more each of them is asked.
    check = {
        "hostname": MESH,
        "path": "/",
        "status": _TEAPOT,
        "interval": f"{max(1, len(peers) // 100)}s",
        "unhealthyInterval": f"{max(2, len(peers) // 100)}s",
        "timeout": "1s",
    }
    alive = {"rule": f"Host(`{MESH}`)", "entryPoints": [HERE], "priority": 10_000, "service": "noop@internal"}
    found: dict[str, Any] = {
        "routers": {"mesh-alive": alive},
        "services": {
            _peer(node): {
                "loadBalancer": {
                    "servers": [{"url": _NOBODY if address is None else f"https://{_reached(address)}"}],
                    # Traefik drops whatever leads to a service whose transport there is not.
                    **({} if address is None else {"serversTransport": _peer(node)}),
                    "healthCheck": check,
                }
            }
            for node, address in peers
        },
        # Until the check has found a dead node, requests find others: it takes a little more than its
        # interval.
        "middlewares": {RETRY: {"retry": {"attempts": 8, "initialInterval": "150ms"}}},
    }
    if mesh.credentials is not None:
        found["serversTransports"] = {
            _peer(node): _transport(node, mesh.credentials) for node, address in peers if address is not None
        }
    return {section: content for section, content in found.items() if content}


def beside_http(mesh: Mesh) -> dict[str, Any]:
    if mesh.credentials is None:
        return {}
    certificate, authority = mesh.credentials.certificate, mesh.credentials.authority
    router = {
        "entryPoints": [ENTRY_POINT],
        "rule": "HostSNI(`*`)",
        "service": HERE,
        "tls": {"options": "mesh"},
    }
    return {
        "tcp": {
            "routers": {"mesh": router},
            "services": {HERE: {"loadBalancer": {"servers": [{"address": f"127.0.0.1:{mesh.port}"}]}}},
        },
        "tls": {
            "certificates": [{"certFile": certificate, "keyFile": certificate}],
            "options": {
                "mesh": {
                    "minVersion": "VersionTLS13",
                    "alpnProtocols": ["http/1.1"],
                    "clientAuth": {"caFiles": [authority], "clientAuthType": "RequireAndVerifyClientCert"},
                }
            },
        },
    }


def _transport(node: str, credentials: Credentials) -> dict[str, Any]:
    return {
        "serverName": name_of(node),
        "rootCAs": [credentials.authority],
        "certificates": [{"certFile": credentials.certificate, "keyFile": credentials.certificate}],
        "disableHTTP2": True,
        "maxIdleConnsPerHost": 200,
        "forwardingTimeouts": {"dialTimeout": "1s", "idleConnTimeout": "30s"},
    }


def _peer(node: str) -> str:
    return f"mesh-{node}"


def _reached(address: str) -> str:
    if not _REACHED.fullmatch(address):
        raise InvalidInput(f"not an address: {address!r}")
    return address
