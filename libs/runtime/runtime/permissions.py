"""Who may say what on NATS: one user per service and per node, confined to its own subjects (I5).

`tests/runtime/test_permissions.py` holds this table against what the services declare.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from contracts import sessions
from contracts.copies import blocks_subject
from contracts.events import (
    AlertRaised,
    AppChanged,
    AppCreated,
    AppDeleted,
    BillingTick,
    BuildFinished,
    BuildStarted,
    CreditGranted,
    DeploymentCancelled,
    DeploymentRequested,
    HostnameAssigned,
    InstanceCrashed,
    InstanceStarted,
    InstanceStopped,
    JobBlocked,
    JobCancelled,
    JobEnded,
    JobFinished,
    JobPlaced,
    JobRequested,
    NodeRemoved,
    PlacementBlocked,
    PlacementDecided,
    RolloutFinished,
    SleepChanged,
    VolumesMoved,
    WalletChanged,
)
from contracts.lines import KeepLines
from contracts.permits import PullPermitFor
from contracts.reports import (
    BuildLog,
    CopiesHeld,
    CopyState,
    JobOutput,
    LinesKept,
    NodeHeartbeat,
    NodePeer,
    NodeTraffic,
)

# nats-server asks there who a user is that its configuration does not list.
REQUESTS = "$SYS.REQ.USER.AUTH"

PUBLISHES: dict[str, tuple[str, ...]] = {
    "gateway": (
        AppCreated.name,
        AppChanged.name,
        AppDeleted.name,
        DeploymentRequested.name,
        DeploymentCancelled.name,
        JobRequested.name,
        JobCancelled.name,
        CreditGranted.name,
        f"{LinesKept.name}.*",
    ),
    "builder": (BuildStarted.name, BuildFinished.name, f"{BuildLog.name}.*"),
    "scheduler": (
        PlacementDecided.name,
        PlacementBlocked.name,
        JobBlocked.name,
        JobPlaced.name,
        JobEnded.name,
        NodeRemoved.name,
        "$KV.desired.>",
        VolumesMoved.name,
        "$KV.jobs.>",
        "$KV.places.>",
        "$KV.peers.>",
        "$KV.copies.>",
        # What a removed node has said of its instances is taken out.
        "$KV.endpoints.>",
    ),
    "domains": (HostnameAssigned.name, "$KV.routes.>"),
    "billing": (BillingTick.name, WalletChanged.name),
}

HEARS: dict[str, tuple[str, ...]] = {
    "gateway": (f"{BuildLog.name}.*", f"{JobOutput.name}.*", f"{LinesKept.name}.*"),
    "scheduler": (
        f"{NodeHeartbeat.name}.*",
        f"{NodePeer.name}.*",
        f"{NodeTraffic.name}.*",
        f"{CopyState.name}.*",
        f"{CopiesHeld.name}.*",
        REQUESTS,
    ),
}

SERVICES = tuple(PUBLISHES)
# The buckets every node reads whole: any of them serves any hostname.
SHARED = ("routes", "endpoints", "places", "peers")
# What the name of every inbox begins with.
INBOX = "_INBOX_"
# The scheduler's second user, which ends connections.
CUTTER = "cutter"


def service_user(service: str) -> tuple[list[str], list[str]]:
    publish = [
        *PUBLISHES[service],
        AlertRaised.name,
        "query.>",
        "$JS.API.>",
        f"$JS.ACK.EVENTS.{service}.>",
    ]
    subscribe = [f"{inbox_of(service)}.>", f"query.{service}.>", *HEARS.get(service, ())]
    if service == "gateway":
        # A customer's terminal to a process on a node.
        publish.append(sessions.to_node("*", "*"))
        subscribe.append(sessions.from_node("*", "*"))
    return publish, subscribe


def node_user(node: str) -> tuple[list[str], list[str]]:
    """A node reads its own desired state and where hostnames lead, and writes what happens on itself."""
    publish = [
        f"{NodeHeartbeat.name}.{node}",
        f"{NodePeer.name}.{node}",
        f"{NodeTraffic.name}.{node}",
        f"{InstanceStarted.name}.{node}",
        f"{InstanceStopped.name}.{node}",
        f"{InstanceCrashed.name}.{node}",
        f"{RolloutFinished.name}.{node}",
        f"{SleepChanged.name}.{node}",
        f"{JobFinished.name}.{node}",
        f"{JobOutput.name}.{node}",
        f"{PullPermitFor.subject()}.{node}",
        f"{KeepLines.subject()}.{node}",
        sessions.from_node(node, "*"),
        f"{CopyState.name}.{node}",
        f"{CopiesHeld.name}.{node}",
        # It asks others for blocks under its own name; they answer whom the scheduler told them to.
        blocks_subject("*", node),
        f"$KV.endpoints.*.{node}",
        "$JS.API.STREAM.INFO.KV_endpoints",
        f"$JS.API.CONSUMER.CREATE.KV_desired.*.$KV.desired.{node}.>",
        f"$JS.API.CONSUMER.CREATE.KV_jobs.*.$KV.jobs.{node}.>",
        *(f"$JS.API.CONSUMER.CREATE.KV_{bucket}.*.$KV.{bucket}.>" for bucket in SHARED),
        f"$JS.API.CONSUMER.CREATE.KV_copies.*.$KV.copies.{node}.>",
    ]
    subscribe = [
        f"{inbox_of(node_name(node))}.>",
        sessions.to_node(node, "*"),
        blocks_subject(node, "*"),
    ]
    return publish, subscribe


def inbox_of(user: str) -> str:
    return f"{INBOX}{user}"


def node_name(node: str) -> str:
    return f"node-{node}"


def nats_config(
    password: Callable[[str], str],
    *,
    services: Sequence[str] = SERVICES,
    nodes: Sequence[str] = (),
    issuer: str | None = None,
) -> str:
    """What nats-server is told of users; `password` gives each one's, `issuer` the public key of who decides
    about every user that is not listed (`runtime.issuer`)."""
    return render(nats_users(password, services=services, nodes=nodes, issuer=issuer))


def nats_users(
    password: Callable[[str], str],
    *,
    services: Sequence[str] = SERVICES,
    nodes: Sequence[str] = (),
    issuer: str | None = None,
) -> dict[str, dict[str, Any]]:
    users = [_user(service, password(service), *service_user(service)) for service in services]
    users += [_user(node_name(node), password(node_name(node)), *node_user(node)) for node in nodes]
    # A reply to a question goes to the asker's inbox, which nobody else may publish to.
    authorization: dict[str, Any] = {"timeout": 5, "users": users}
    config: dict[str, dict[str, Any]] = {"authorization": authorization}
    if issuer is not None:
        listed = [user["user"] for user in users]
        authorization["auth_callout"] = {"issuer": issuer, "auth_users": [*listed, CUTTER]}
        config["accounts"] = {"$SYS": {"users": [_cutter(password(CUTTER))]}}
    return config


def render(config: dict[str, dict[str, Any]]) -> str:
    return "".join(f"{name}: {json.dumps(value, indent=2)}\n" for name, value in config.items())


def _cutter(password: str) -> dict[str, Any]:
    """Finds the connections of a removed node, and ends them; nothing else of the server's own account."""
    return {
        "user": CUTTER,
        "password": password,
        "permissions": {
            "publish": {"allow": ["$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.*.KICK"]},
            "subscribe": {"allow": [f"{inbox_of(CUTTER)}.>"]},
        },
    }


def _user(name: str, password: str, publish: list[str], subscribe: list[str]) -> dict[str, Any]:
    return {
        "user": name,
        "password": password,
        "permissions": {
            "publish": {"allow": publish},
            "subscribe": {"allow": subscribe},
            "allow_responses": {"max": 1, "expires": "1m"},
        },
    }
