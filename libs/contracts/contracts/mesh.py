"""What nodes know of each other, so that any of them serves any hostname: the buckets `places` and
`peers`.
"""

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from contracts.ids import AppId, NodeName, OrganizationId
from contracts.model import Model, Moment

# No name of the internet: the certificate of every ingress has it, and that of a node one of its own below
# it.
MESH = "mesh.berth.invalid"
# A certificate is made for twice this, and asked for anew when this is left: so long the control plane may be
# away (I6), and so long at most a removed node still gets through to the others.
RENEW = timedelta(hours=24)

Host = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-fA-F:]{2,45}\])$")
]


def name_of(node: str) -> str:
    """What a node's ingress is called by the others: its certificate says so."""
    return f"{node}.{MESH}"


class Placed(Model):
    """Which nodes have been told to run a workload: the value in the `places` bucket, from the scheduler.

    What any other node says of its instances is not believed: it has been told to stop them, or lies.
    """

    workload: AppId
    organization: OrganizationId
    revision: Annotated[int, Field(ge=0)]
    nodes: tuple[NodeName, ...]


class Peer(Model):
    """A node that others reach: the value in the `peers` bucket, from the scheduler."""

    node: NodeName
    # None: the node has not said where it is reached, and nobody knows.
    host: Host | None
    port: Annotated[int, Field(ge=1, le=65535)]
    # For the key in the node's own request; and whose it is, who vouches for all of them. Both PEM.
    certificate: str
    authority: str
    expires_at: Moment
