"""Joins the platform: makes this machine's key, shows the token, writes what the platform answers.

Invariant: the key is on disk before the token is used, so an answer that was lost is asked for again with the
same key; with the answer on disk, nothing is asked any more. Neither key nor token is ever an argument.
"""

import json
import platform
import re
import secrets
import socket
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contracts.errors import BerthError, Unavailable

from berth_node.layout import FIRST_ID, HERE_PORT, MESH_PORT, Layout, write

_PATIENCE = 30
_LONGEST = 256 * 1024
_MESH = {"NODE_AGENT_MESH_PORT": str(MESH_PORT), "NODE_AGENT_MESH_HERE_PORT": str(HERE_PORT)}


class Refused(BerthError):
    """The platform says no, and why."""


def join(layout: Layout, url: str, token: str, name: str | None) -> str:
    """The node's name. What is written lets the agent log in."""
    if layout.agent_env.exists():
        known = read(layout.agent_env)
        # What has come since it joined.
        _keep(layout, {**_MESH, **known})
        return known["BERTH_NODE"]
    if not token:
        raise Refused("a join token is needed: set BERTH_JOIN_TOKEN")
    if not layout.key.exists():
        write(layout.key, secrets.token_urlsafe(48) + "\n")
    key = layout.key.read_text().strip()
    answer = _ask(url, {"token": token, "key": key, "name": name or own_name(), "machine": facts()})
    if answer["nats_ca"]:
        write(layout.nats_ca, answer["nats_ca"])
    node: str = answer["node"]
    settings = {
        **answer["settings"],
        "BERTH_STATE": str(layout.state),
        "BERTH_NODE": node,
        "BERTH_NATS_URL": answer["nats_url"],
        "BERTH_NATS_PASSWORD": key,
        "BERTH_NODE_SEAL_KEY": answer["seal_key"],
        "NODE_AGENT_REGION": answer["region"],
        "NODE_AGENT_ROUTES": str(layout.routes),
        "NODE_AGENT_INGRESS_URL": "http://127.0.0.1:80",
        "NODE_AGENT_FIRST_UID": str(FIRST_ID),
        **_MESH,
    }
    if answer["nats_ca"]:
        settings["BERTH_NATS_CA"] = str(layout.nats_ca)
    _keep(layout, settings)
    return node


def own_name() -> str:
    """This machine's, as far as it can be a node's."""
    return re.sub(r"[^a-z0-9]+", "-", socket.gethostname().partition(".")[0].lower()).strip("-")[:40]


def facts() -> dict[str, str]:
    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        system = ""
    return {
        "hostname": socket.gethostname(),
        "system": system,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "agent": version("berth-node-agent"),
    }


def _ask(url: str, words: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(  # noqa: S310 the script's own address
        f"{url}/api/nodes/join",
        data=json.dumps(words).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as response:  # noqa: S310
            found: dict[str, Any] = json.loads(response.read(_LONGEST))
            return found
    except urllib.error.HTTPError as error:
        with error:
            body = error.read(_LONGEST)
        try:
            message = json.loads(body)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{url} answers {error.code}"
        raise Refused(message) from None
    except OSError as error:
        raise Unavailable(f"{url} cannot be reached: {error}; run the script again") from error


def _line(value: str) -> str:
    if "\n" in value or "\0" in value:
        raise Refused("the platform's answer has a setting with a line break")
    return value


def _keep(layout: Layout, settings: dict[str, str]) -> None:
    write(layout.agent_env, "".join(f"{name}={_line(value)}\n" for name, value in sorted(settings.items())))


def read(settings: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in settings.read_text().splitlines() if "=" in line)
    return {name: value for name, _, value in pairs}
