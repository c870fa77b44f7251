"""Who may say what on NATS: one user per service and per node, confined to its own subjects (I5).

`tests/runtime/test_permissions.py` holds this table against what the services declare.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from contracts.events import (
    AlertRaised,
    AppChanged,
    AppCreated,
    AppDeleted,
    BillingTick,
    BuildFinished,
    BuildStarted,
    CreditGranted,
    DeploymentRequested,
    HostnameAssigned,
    InstanceStarted,
    InstanceStopped,
    PlacementBlocked,
    PlacementDecided,
    RolloutFinished,
    WalletChanged,
)
from contracts.reports import BuildLog, NodeHeartbeat

PUBLISHES: dict[str, tuple[str, ...]] = {
    "gateway": (
        AppCreated.name,
        AppChanged.name,
        AppDeleted.name,
        DeploymentRequested.name,
        CreditGranted.name,
    ),
    "builder": (BuildStarted.name, BuildFinished.name, f"{BuildLog.name}.*"),
    "scheduler": (PlacementDecided.name, PlacementBlocked.name, "$KV.desired.>"),
    "domains": (HostnameAssigned.name, "$KV.routes.>"),
    "billing": (BillingTick.name, WalletChanged.name),
}

HEARS: dict[str, tuple[str, ...]] = {
    "gateway": (f"{BuildLog.name}.*",),
    "scheduler": (f"{NodeHeartbeat.name}.*",),
}

SERVICES = tuple(PUBLISHES)


def service_user(service: str) -> tuple[list[str], list[str]]:
    publish = [
        *PUBLISHES[service],
        AlertRaised.name,
        "query.>",
        "$JS.API.>",
        f"$JS.ACK.EVENTS.{service}.>",
    ]
    subscribe = [f"_INBOX_{service}.>", f"query.{service}.>", *HEARS.get(service, ())]
    return publish, subscribe


def node_user(node: str) -> tuple[list[str], list[str]]:
    """A node reads its own desired state and the routes, and writes what happens on itself."""
    publish = [
        f"{NodeHeartbeat.name}.{node}",
        f"{InstanceStarted.name}.{node}",
        f"{InstanceStopped.name}.{node}",
        f"{RolloutFinished.name}.{node}",
        f"$KV.endpoints.*.{node}",
        "$JS.API.STREAM.INFO.KV_endpoints",
        f"$JS.API.CONSUMER.CREATE.KV_desired.*.$KV.desired.{node}.>",
        "$JS.API.CONSUMER.CREATE.KV_routes.*.$KV.routes.>",
    ]
    return publish, [f"_INBOX_{node_name(node)}.>"]


def node_name(node: str) -> str:
    return f"node-{node}"


def nats_config(
    password: Callable[[str], str], *, services: Sequence[str] = SERVICES, nodes: Sequence[str] = ()
) -> str:
    """The `authorization` block of nats-server; `password` gives each user's."""
    users = []
    for service in services:
        users.append(_user(service, password(service), *service_user(service)))
    for node in nodes:
        users.append(_user(node_name(node), password(node_name(node)), *node_user(node)))
    # A reply to a question goes to the asker's inbox, which nobody else may publish to.
    return "authorization: " + json.dumps({"timeout": 5, "users": users}, indent=2) + "\n"


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
