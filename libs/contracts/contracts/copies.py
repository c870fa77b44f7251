"""Copies of a workload's volumes from one node to another: what is ordered, and what the two ends say.

The scheduler orders; the order is a key of each end in the bucket `copies`. The taking node asks the giving
one for blocks on a subject that only these two may use, and says in each question the secret both were told
for this one copy. Nothing is in a copy that the giver did not read, and nothing in it is believed but by its
digest.
"""

import hashlib
import hmac
from typing import Annotated, Literal

from pydantic import Field

from contracts.ids import AppId, CopyId, NodeName, OrganizationId, VolumeId
from contracts.model import Model, Moment

# A block is one message: NATS takes no larger one than 1 MB.
BLOCK = 512 * 1024
DIGEST = 32
# Digests in one answer: 512 MB of a volume are read for them.
PAGE = 1024

Role = Literal["give", "take", "drop"]
# Frozen: the instances go on, and their files stand still for a moment. Final: they have ended.
Mode = Literal["frozen", "final"]


class CopyOrder(Model):
    """What one node has to do for a copy: the value in the bucket `copies`. No order is nothing to do."""

    id: CopyId
    workload: AppId
    role: Role
    # The other end; of a copy that is to be dropped there is none.
    peer: NodeName | None = None
    secret: Annotated[str, Field(repr=False)] = ""
    mode: Mode = "frozen"


class CopyClaim(Model):
    """The copy a node is to make the workload's data, or a newer one it may have got since."""

    id: CopyId
    taken_at: Moment


class Ask(Model):
    """Of a taker to its giver. `open` begins anew, `settle` fixes what the copy is, `close` ends it."""

    id: CopyId
    secret: Annotated[str, Field(repr=False)]
    what: Literal["open", "digests", "block", "settle", "close"]
    volume: VolumeId | None = None
    index: Annotated[int, Field(ge=0)] = 0


class OfferedVolume(Model):
    id: VolumeId
    size: Annotated[int, Field(ge=0)]

    @property
    def blocks(self) -> int:
        return -(-self.size // BLOCK)


class Offer(Model):
    volumes: tuple[OfferedVolume, ...]


class Settled(Model):
    """`waiting`: not yet, and why. The digest is of all volumes."""

    waiting: str | None = None
    taken_at: Moment | None = None
    digest: str | None = None
    frozen_ms: Annotated[int, Field(ge=0)] = 0


class Copying(Model):
    """A copy under way."""

    why: Literal["copy", "move"]
    source: NodeName
    target: NodeName
    done_mb: int
    total_mb: int
    sent_mb: int
    since: Moment
    # The instances have ended, and the last difference is brought over.
    last: bool
    # Why it does not get on.
    words: str | None


class NodeCopying(Copying):
    workload: AppId
    organization: OrganizationId


class WorkloadCopies(Model):
    # The node the data is on; none: it is nowhere yet.
    home: NodeName | None
    # The moment of the newest copy on another node, and which one that is.
    newest: Moment | None = None
    on: NodeName | None = None
    copying: Copying | None = None


def blocks_subject(giver: str, taker: str) -> str:
    return f"volume.blocks.{giver}.{taker}"


def digest_of(volumes: dict[str, bytes]) -> str:
    """Of all blocks of all volumes: `volumes` has the digests of each one's blocks, joined."""
    whole = hashlib.blake2b(digest_size=DIGEST)
    for volume in sorted(volumes):
        whole.update(f"{volume}:{len(volumes[volume])}\n".encode())
        whole.update(volumes[volume])
    return whole.hexdigest()


def volume_key(node_key: str, volume: str) -> str:
    """Of an encrypted volume that was made on the node with this key: it stays with the volume wherever it
    goes."""
    return hmac.new(node_key.encode(), f"volume/{volume}".encode(), hashlib.sha512).hexdigest()


def keys_for_node(workload: AppId, node: NodeName) -> str:
    """The context in which the keys of a workload's volumes are sealed for a node."""
    return f"volume keys of {workload} on {node}"
