"""The Traefik of this machine: from its wheel, told everything by the node's agent through files in
`routes`.

It serves plain HTTP on one entry point, believes no forwarded header, and shows no API to anybody. Where
other nodes exist, it has two more: `mesh` for their ingresses, and `here`, on loopback, where that one
leads.
"""

import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded import wheels
from embedded.daemon import Daemon, environment, write_if_new


@dataclass(frozen=True)
class MeshPorts:
    host: str
    port: int
    here: int


class Traefik:
    def __init__(
        self,
        folder: Path,
        port: int,
        ping_port: int,
        host: str = "127.0.0.1",
        mesh: MeshPorts | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.port = port
        self.ping_port = ping_port
        self.routes = self.folder / "routes"
        self.daemon = Daemon("traefik", self.folder)
        self._config: dict[str, Any] = {
            "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
            "log": {"level": "WARN", "noColor": True},
            "providers": {
                "file": {"directory": str(self.routes), "watch": True},
                "providersThrottleDuration": "100ms",
            },
            "ping": {"entryPoint": "ping"},
            "metrics": {
                "prometheus": {
                    # Asked for under the agent's secret hostname only. One bucket: each is a line more for
                    # every app, method and status.
                    "manualRouting": True,
                    "addEntryPointsLabels": False,
                    "buckets": [1.0],
                }
            },
            # An instance that leaves is drained of its connections; idle ones must not keep it.
            "serversTransport": {"forwardingTimeouts": {"idleConnTimeout": "3s"}},
            "entryPoints": {
                "web": {
                    "address": f"{host}:{port}",
                    "asDefault": True,
                    # X_Forwarded_For reaches a WSGI app under the name of the header Traefik manages.
                    "http": {"aliasHeadersStrategy": "delete"},
                    "forwardedHeaders": {"insecure": False, "trustedIPs": []},
                    "transport": {
                        # The time to send a whole request, an upload included.
                        "respondingTimeouts": {"readTimeout": "300s", "idleTimeout": "180s"},
                        "lifeCycle": {"requestAcceptGraceTimeout": "0s", "graceTimeOut": "5s"},
                    },
                },
                "ping": {
                    "address": f"127.0.0.1:{ping_port}",
                    "http": {"aliasHeadersStrategy": "delete"},
                },
            },
        }
        if mesh is not None:
            web = self._config["entryPoints"]["web"]
            self._config["entryPoints"] |= {
                "mesh": {"address": f"{mesh.host}:{mesh.port}", "http": web["http"]},
                # Who comes here came by the entry point of another node, which knows the visitor.
                "here": {
                    "address": f"127.0.0.1:{mesh.here}",
                    "http": web["http"],
                    # A certificate is looked at when a connection begins: none outlives it for long.
                    "transport": {**web["transport"], "keepAliveMaxTime": "1h"},
                    "forwardedHeaders": {"trustedIPs": ["127.0.0.1/32"], "notAppendXForwardedFor": True},
                },
            }

    def start(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.routes.mkdir(exist_ok=True)
        # JSON is YAML; Traefik reads only files that are called YAML or TOML.
        config = self.folder / "traefik.yaml"
        if write_if_new(config, json.dumps(self._config, indent=2) + "\n"):
            self.daemon.stop()
        self.daemon.start([wheels.traefik(), f"--configFile={config}"], environment(GOMEMLIMIT="128MiB"))

    def ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.ping_port, timeout=1)
        try:
            connection.request("GET", "/ping")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_ready(self, seconds: float = 20) -> None:
        self.daemon.wait_ready(self.ready, seconds)

    def stop(self) -> None:
        self.daemon.stop()
