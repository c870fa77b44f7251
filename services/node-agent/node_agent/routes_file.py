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

from node_agent import mesh_file
from node_agent.mesh_file import Mesh

HEADER = "X-Berth-Routes"
ENTRY_POINT = "web"
# Of the secret hostname: what the proxy has counted, for the agent alone.
METRICS_PATH = "/metrics"
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
    # Other nodes, and how many instances each has.
    elsewhere: tuple[tuple[str, int], ...] = ()
    # Nobody here keeps it, and nobody waits until the proxy serves it: its file says no more than it must,
    # because all of them are read whenever one changes.
    remote: bool = False
    # The proxy counts its requests.
    counted: bool = True


def is_hostname(text: str) -> bool:
    return _HOSTNAME.fullmatch(text) is not None


def shard(hostname: str) -> str:
    """Which parent a hostname is below. The many that begin with "www." are spread by what comes next."""
    if hostname.startswith(_WWW):
        return _WWW + hostname[len(_WWW) :][:2]
    return hostname[:2]


def confirm_path(workload: str) -> str:
    return f"/{workload}"


def digest(served: Served, *, meshed: bool = False) -> str:
    return _digest(_content(served, meshed))


def render(served: Served, *, meshed: bool = False) -> str:
    """The file of one workload: JSON, which is YAML too. `meshed`: other nodes send requests for it here."""
    content = _content(served, meshed)
    if served.remote:
        return _text({"http": content})
    marker = {"headers": {"customResponseHeaders": {HEADER: _digest(content)}}}
    return _text({"http": {**content, "middlewares": {f"{served.workload}-confirm": marker}}})


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(_text(content).encode()).hexdigest()[:16]


def check(served: Served) -> None:
    """Traefik runs its files through a template engine, and one broken file stops the loading of all."""
    for hostname in served.hostnames:
        if not is_hostname(hostname):
            raise InvalidInput(f"not a hostname: {hostname!r}")
    for address in served.addresses:
        if not _ADDRESS.fullmatch(address):
            raise InvalidInput(f"not an address: {address!r}")
    for node, _ in served.elsewhere:
        mesh_file.check(node)


def _content(served: Served, meshed: bool) -> dict[str, Any]:
    check(served)
    name, elsewhere = served.workload, served.elsewhere
    # What is here keeps its service's name, by which it is counted, whatever others have. Under another one
    # the proxy drops what it has kept of it.
    here = name if served.counted else f"{name}-uncounted"
    everywhere = mesh_file.everywhere(name)
    only = mesh_file.only(elsewhere) if served.remote else None
    routers: dict[str, Any] = {}
    if not served.remote:
        routers[f"{name}-confirm"] = {
            "rule": f"Path(`{confirm_path(name)}`)",
            "parentRefs": ["confirm"],
            "middlewares": [f"{name}-confirm"],
            "service": "noop@internal",
        }
    for hostname in sorted(served.hostnames):
        routers[f"{name}-{hostname}"] = {
            "rule": f"Host(`{hostname}`)",
            "parentRefs": [_parent(shard(hostname))],
            "middlewares": [mesh_file.RETRY if elsewhere else "retry"],
            "service": only or (everywhere if elsewhere else here),
        }
        if meshed and served.addresses:
            routers[f"{name}-{hostname}-here"] = {
                "rule": f"Host(`{hostname}`)",
                "parentRefs": [_parent(shard(hostname), mesh_file.HERE)],
                "middlewares": ["retry"],
                "service": here,
            }
    instances = {
        "servers": [{"url": f"http://{address}"} for address in sorted(served.addresses)],
        "serversTransport": "instances",
    }
    if only is not None:
        return {"routers": routers}
    services: dict[str, Any] = {here: {"loadBalancer": instances}}
    if elsewhere:
        services = mesh_file.services(everywhere, here, instances, len(served.addresses), elsewhere)
    if not served.counted:
        _uncount(routers.values())
    return {"routers": routers, "services": services}


def _uncount(routers: Iterable[dict[str, Any]]) -> None:
    """Only a router below no parent can say that it is not counted."""
    for router in routers:
        if router["rule"].startswith("Host("):
            [parent] = router.pop("parentRefs")
            router["entryPoints"] = [ENTRY_POINT if parent.startswith(_parent("")) else mesh_file.HERE]
            router["priority"] = 1_000
            router["observability"] = {"metrics": False}


def render_common(secret: str, shards: Iterable[str], certificate: str, mesh: Mesh | None = None) -> str:
    """What every workload's file refers to; and a certificate, so that Traefik makes none by itself."""
    meshed = {} if mesh is None else mesh_file.http(mesh)
    beside = {} if mesh is None else mesh_file.beside_http(mesh)
    routers: dict[str, Any] = {
        "confirm": {"rule": f"Host(`{secret}`)", "entryPoints": [ENTRY_POINT], "priority": 10_000}
    }
    for key in shards:
        pattern = key.replace(".", "[.]")
        # A longer key is the more special one: "www.ab" is asked before "ww".
        for entry_point in (ENTRY_POINT,) if mesh is None else (ENTRY_POINT, mesh_file.HERE):
            routers[_parent(key, entry_point)] = {
                "rule": f"HostRegexp(`^{pattern}`)",
                "entryPoints": [entry_point],
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
    # Only a request that never reached an instance is tried again, on the next one.
    retry = {"retry": {"attempts": 3, "initialInterval": "50ms"}}
    routers["metrics"] = {
        "rule": f"Path(`{METRICS_PATH}`)",
        "parentRefs": ["confirm"],
        "service": "prometheus@internal",
    }
    return _text(
        {
            "http": {
                **meshed,
                "routers": dict(sorted({**routers, **meshed.get("routers", {})}.items())),
                "middlewares": {"retry": retry, **meshed.get("middlewares", {})},
                "serversTransports": {
                    **meshed.get("serversTransports", {}),
                    "instances": {
                        "forwardingTimeouts": {
                            "dialTimeout": "3s",
                            # Shorter than what servers keep idle connections for, so that none is used in
                            # the moment it is closed; and a leaving instance is rid of them soon.
                            "idleConnTimeout": "1s",
                        }
                    },
                },
            },
            **beside,
            "tls": {
                **beside.get("tls", {}),
                "stores": {
                    "default": {"defaultCertificate": {"certFile": certificate, "keyFile": certificate}}
                },
            },
        }
    )


def shards_of(hostnames: Iterable[str]) -> set[str]:
    return {shard(hostname) for hostname in hostnames}


def hostnames_in(text: str) -> Collection[str]:
    """The hostnames in a file that `render` has made."""
    rules = [router["rule"] for router in json.loads(text)["http"]["routers"].values()]
    return [rule[6:-2] for rule in rules if rule.startswith("Host(")]


def peers_in(text: str) -> set[str]:
    """The nodes such a file leads to."""
    content = json.loads(text)["http"]
    services = [router["service"] for router in content["routers"].values()]
    for service in content.get("services", {}).values():
        services += [part["name"] for part in service.get("weighted", {}).get("services", ())]
    return mesh_file.peers_in(services)


def has_instances(text: str) -> bool:
    """Whether such a file leads to instances of this node."""
    services = json.loads(text)["http"].get("services", {}).values()
    return any(service.get("loadBalancer", {}).get("servers") for service in services)


def _parent(key: str, entry_point: str = ENTRY_POINT) -> str:
    return f"shard-{key}" if entry_point == ENTRY_POINT else f"{entry_point}-{key}"


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=1) + "\n"
