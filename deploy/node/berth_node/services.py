"""The services of a node and what each is started with, for systemd and for a supervisor of our own.

The agent mounts volumes, writes packet rules and drives the engine, so it is root with what root needs for
that and no more. The ingress is root without any right but to ports below 1024.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import Unavailable

from berth_node.layout import HERE_PORT, MESH_PORT, Layout

# Nothing in it may give the agent a view of the mounts of its own: the engine has to see its volumes.
_HARDENED = """\
NoNewPrivileges=yes
RestrictRealtime=yes
LockPersonality=yes
SystemCallArchitectures=native
"""


@dataclass(frozen=True)
class Run:
    name: str
    about: str
    argv: Sequence[str]
    environment_file: Path | None = None
    # Lines of the unit's [Service] beside what all have.
    more: str = ""
    after: str = "network-online.target"
    # A folder whose disk has to be mounted: without it the node would look like a new one.
    folder: Path | None = None

    def unit(self) -> str:
        told = f"EnvironmentFile={self.environment_file}\n" if self.environment_file else ""
        mounted = f"RequiresMountsFor={self.folder}\n" if self.folder else ""
        return (
            f"[Unit]\nDescription={self.about}\nAfter={self.after}\nWants={self.after}\n{mounted}"
            "StartLimitIntervalSec=0\n\n"
            f"[Service]\nExecStart={' '.join(self.argv)}\n{told}Restart=always\nRestartSec=2\n"
            f"TimeoutStopSec=45\n{_HARDENED}{self.more}\n[Install]\nWantedBy=multi-user.target\n"
        )


def runs(layout: Layout) -> tuple[Run, ...]:
    return (
        Run(
            "berth-ingress",
            "Berth: ingress of this node",
            (str(traefik(layout)), f"--configFile={layout.ingress_yaml}"),
            more=(
                "CapabilityBoundingSet=CAP_NET_BIND_SERVICE\nProtectSystem=strict\nProtectHome=yes\n"
                "PrivateTmp=yes\nPrivateDevices=yes\nProtectKernelTunables=yes\nProtectControlGroups=yes\n"
                "ProtectKernelModules=yes\nProtectClock=yes\nProtectHostname=yes\nRestrictSUIDSGID=yes\n"
                "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\nLimitNOFILE=1048576\n"
            ),
        ),
        Run(
            "berth-agent",
            "Berth: agent of this node",
            (str(layout.program / "berth"), "run", "node-agent"),
            environment_file=layout.agent_env,
            more="LimitNOFILE=1048576\n",
            after="network-online.target docker.service",
            folder=layout.state,
        ),
    )


def ingress(layout: Layout) -> str:
    """The same as of every other ingress of the platform; JSON is YAML."""
    aliases = {"aliasHeadersStrategy": "delete"}
    transport = {
        "respondingTimeouts": {"readTimeout": "300s", "idleTimeout": "180s"},
        "lifeCycle": {"requestAcceptGraceTimeout": "0s", "graceTimeOut": "5s"},
    }
    web = {
        "asDefault": True,
        "http": aliases,
        "forwardedHeaders": {"insecure": False, "trustedIPs": []},
        "transport": transport,
    }
    config = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "WARN", "noColor": True},
        "providers": {
            "file": {"directory": str(layout.routes), "watch": True},
            "providersThrottleDuration": "100ms",
        },
        "ping": {"entryPoint": "ping"},
        "metrics": {"prometheus": {"manualRouting": True, "addEntryPointsLabels": False, "buckets": [1.0]}},
        "serversTransport": {"forwardingTimeouts": {"idleConnTimeout": "3s"}},
        "entryPoints": {
            "web": {"address": ":80", **web},
            "ping": {"address": "127.0.0.1:8082", "http": aliases},
            # For the ingresses of other nodes; it leads to `here`, where hostnames lead to this node alone.
            "mesh": {"address": f":{MESH_PORT}", "http": aliases},
            "here": {
                "address": f"127.0.0.1:{HERE_PORT}",
                "http": aliases,
                # A certificate is looked at when a connection begins: none outlives it for long.
                "transport": {**transport, "keepAliveMaxTime": "1h"},
                "forwardedHeaders": {"trustedIPs": ["127.0.0.1/32"], "notAppendXForwardedFor": True},
            },
        },
    }
    return json.dumps(config, indent=2) + "\n"


def traefik(layout: Layout) -> Path:
    """Where its wheel has put it."""
    root = layout.program.parent
    found = [*root.glob("bin/traefik"), *root.glob("lib/python3*/site-packages/**/bin/traefik")]
    if not found:
        raise Unavailable(f"there is no ingress in {root}: run the script again")
    return found[0]
