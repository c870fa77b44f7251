"""Where things of the platform are on a node, and nowhere else."""

import os
from dataclasses import dataclass
from pathlib import Path

# The first of the user ids the engine maps containers to; `node.sh` writes it to /etc/subuid.
FIRST_ID = 1073741824
# Of the ingress: where other nodes reach it, and where that leads, on loopback.
MESH_PORT, HERE_PORT = 7443, 7480


@dataclass(frozen=True)
class Layout:
    program: Path = Path("/opt/berth-node/current/venv/bin")
    settings: Path = Path("/etc/berth-node")
    state: Path = Path("/var/lib/berth-node")
    run: Path = Path("/run/berth-node")
    units: Path = Path("/etc/systemd/system")

    @property
    def key(self) -> Path:
        return self.settings / "key"

    @property
    def agent_env(self) -> Path:
        return self.settings / "agent.env"

    @property
    def ingress_yaml(self) -> Path:
        return self.settings / "ingress.yaml"

    @property
    def nats_ca(self) -> Path:
        return self.settings / "nats-ca.pem"

    @property
    def routes(self) -> Path:
        return self.state / "ingress" / "routes"


def write(path: Path, text: str) -> bool:
    """Whole or not at all, for root alone; False when it said that already."""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    return True
