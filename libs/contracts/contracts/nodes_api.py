"""The models of the REST API about nodes: what an administrator decides, and what a joining machine says.

What he is shown of nodes are the answers of their owner (`contracts.queries`).
"""

from ipaddress import IPv4Address
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, StringConstraints

from contracts.ids import SHORT_NAME, SHORT_NAME_WORDS, NodeName
from contracts.model import Model, Strict
from contracts.queries import JoinTokenInfo, NodeLimits
from contracts.shapes import shaped

Label = Annotated[
    str,
    shaped(
        r"^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$",
        "up to 63 letters, digits, and any of . _ / - between them",
    ),
]
Labels = Annotated[dict[Label, Label], Field(max_length=32)]
RegionName = Annotated[str, shaped(SHORT_NAME, SHORT_NAME_WORDS)]
Fact = Annotated[str, StringConstraints(max_length=200)]


class MakeJoinToken(Strict):
    region: RegionName
    # None: the machine says what it is called.
    node: NodeName | None = None
    labels: Labels = {}
    minutes: Annotated[int, Field(ge=1, le=30 * 24 * 60)] = 60


class JoinTokenView(Model):
    """`token` is told this once. `command` is for a root shell of the new server."""

    token: str
    command: str
    info: JoinTokenInfo


class JoinAsNode(Strict):
    token: SecretStr
    # Made by the machine, and its password on the bus from now on.
    key: Annotated[SecretStr, Field(min_length=40, max_length=200)]
    # As its host name has it, or as its operator says; the token's own name goes before it.
    name: Annotated[str, StringConstraints(max_length=200)] | None = None
    machine: Annotated[dict[Fact, Fact], Field(max_length=16)] = {}


class NodeSetup(Model):
    """What a machine needs to be the node."""

    node: NodeName
    region: str
    nats_url: str
    # None: one of the public authorities vouches for it.
    nats_ca: str | None
    seal_key: str
    settings: dict[str, str]


class ChooseNodeLimits(NodeLimits):
    model_config = Strict.model_config


class ChangeNode(Strict):
    """What is absent stays; an empty `limits` takes all of them away."""

    labels: Labels | None = None
    limits: ChooseNodeLimits | None = None
    oversubscribe_cpu: Annotated[float, Field(ge=1, le=16)] | None = None
    oversubscribe_memory: Annotated[float, Field(ge=1, le=4)] | None = None
    reserve: Annotated[float, Field(ge=0, le=0.9)] | None = None


class AskServerKey(Strict):
    address: IPv4Address
    port: Annotated[int, Field(ge=1, le=65535)] = 22


class AddServer(AskServerKey):
    """A server the platform sets up by itself. The password is used once and kept nowhere; `fingerprint` is
    what POST …/servers/key said and the administrator compared."""

    fingerprint: Annotated[
        str, shaped(r"^SHA256:[A-Za-z0-9+/]{43}$", "as POST …/servers/key says it: SHA256:…")
    ]
    # Root, by whatever name.
    user: Annotated[str, shaped(r"^[a-z_][a-z0-9_-]{0,31}$", "the name of a user, such as root")] = "root"
    password: Annotated[SecretStr, Field(min_length=1, max_length=200)]
    region: RegionName
    node: NodeName | None = None
    labels: Labels = {}


class ServerKey(Model):
    """Compare it with what the server's own console says (`ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub`)."""

    fingerprint: str
    kind: str


class SetupStep(Model):
    """One event of the stream: a line of what is done on the server, or how it ended."""

    kind: Literal["step", "line", "joined", "failed"]
    text: str
    details: dict[str, Any] = {}
