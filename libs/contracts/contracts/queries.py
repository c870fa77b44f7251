"""Questions to the owner of the data, over NATS request/reply: `query.<owner>.<what>`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from contracts.build_queries import BuildLogAfter, BuildsOpen, ImageLookup
from contracts.copies import NodeCopying, WorkloadCopies
from contracts.events import DeploymentRequested
from contracts.ids import (
    AppId,
    InstanceId,
    NodeName,
    OrganizationId,
    SourceId,
    UserId,
)
from contracts.lines import KeepLines
from contracts.model import Model, Moment
from contracts.money import Money
from contracts.permits import PullPermitFor
from contracts.question import Query
from contracts.reports import NodeCapacity, NodeUsage, VolumeUse
from contracts.workload import WorkloadSpec


class Workloads(Model):
    """A page of every workload's newest specification; the deleted ones stay in it as tombstones."""

    specs: tuple[WorkloadSpec, ...]
    next: AppId | None


class WorkloadsAfter(Query[Workloads]):
    """The owner's snapshot: how every other service heals what its messages did not tell it."""

    owner, what, answer = "gateway", "workloads", Workloads
    after: AppId | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 200


class PendingDeployments(Model):
    requests: tuple[DeploymentRequested, ...]


class DeploymentsPending(Query[PendingDeployments]):
    """Deployments that wait for a build: the builder finds here what no message told it."""

    owner, what, answer = "gateway", "pending_deployments", PendingDeployments


class SourcePart(Model):
    # Base64 in JSON; a part is small enough for one message.
    data: bytes
    last: bool

    model_config = Model.model_config | {"ser_json_bytes": "base64", "val_json_bytes": "base64"}


class SourcePartOf(Query[SourcePart]):
    owner, what, answer = "gateway", "source_part", SourcePart
    source: SourceId
    index: Annotated[int, Field(ge=0)]


class SealedCredentials(Model):
    """Sealed for the builder: see `contracts.credentials`."""

    git: str | None
    registry: str | None


class CredentialsOf(Query[SealedCredentials]):
    owner, what, answer = "gateway", "credentials", SealedCredentials
    workload: AppId


class RegionInfo(Model):
    name: str
    base_domain: str
    has_room: bool


class Regions(Model):
    regions: tuple[RegionInfo, ...]


class RegionsWithRoom(Query[Regions]):
    owner, what, answer = "scheduler", "regions", Regions


class NodeLimits(Model):
    """The most of a node the platform may promise, as its administrator decides; none: all it has."""

    cpu_millis: Annotated[int, Field(gt=0)] | None = None
    memory_mb: Annotated[int, Field(gt=0)] | None = None
    disk_mb: Annotated[int, Field(gt=0)] | None = None


class NodeInfo(Model):
    """`capacity` is what may be promised: what the machine has, oversubscribed and limited."""

    name: NodeName
    region: str
    status: Literal["online", "offline"]
    last_seen_at: Moment | None
    capacity: NodeCapacity
    allocated: NodeUsage
    used: NodeUsage
    instances: int
    engine: str
    # Its container engine does not answer: nothing new is begun there.
    engine_away: bool = False
    machine: NodeCapacity | None = None
    limits: NodeLimits = NodeLimits()
    oversubscribe_cpu: float = 1
    oversubscribe_memory: float = 1
    # The share of the capacity that only work which has lost its node may take.
    reserve: float = 0
    disabled: bool = False
    draining: bool = False
    # Of a drain: the slots there were, and those still there.
    drain_total: int | None = None
    placements: int = 0
    labels: dict[str, str] = {}
    agent: str = ""
    address: str | None = None
    joined_at: Moment | None = None
    # Came back after several outages, and gets new work from then on.
    trusted_at: Moment | None = None
    # The resources of which nearly all is in use.
    pressed: tuple[str, ...] = ()


class Nodes(Model):
    nodes: tuple[NodeInfo, ...]
    next: NodeName | None = None


class AllNodes(Query[Nodes]):
    owner, what, answer = "scheduler", "nodes", Nodes
    after: NodeName | None = None
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class NodePlacement(Model):
    workload: AppId
    organization: OrganizationId
    process: str
    index: int
    limits: NodeCapacity
    # It has been told to leave and is not known to have left.
    leaving: bool


class NodeSample(Model):
    at: Moment
    used: NodeUsage
    allocated: NodeCapacity
    instances: int


class NodeDetail(Model):
    node: NodeInfo
    placements: tuple[NodePlacement, ...]
    history: tuple[NodeSample, ...]
    # Data of apps on its way from here or to here.
    copying: tuple[NodeCopying, ...] = ()


class NodeOf(Query[NodeDetail]):
    """A node in detail. Its history is finer the shorter it is."""

    owner, what, answer = "scheduler", "node", NodeDetail
    node: NodeName
    hours: Annotated[int, Field(ge=1, le=720)] = 24


class NodeChanged(Query[NodeInfo]):
    """An administrator's decision about a node: what is absent stays. The answer follows its commit."""

    owner, what, answer = "scheduler", "change_node", NodeInfo
    node: NodeName
    disabled: bool | None = None
    draining: bool | None = None
    labels: dict[str, str] | None = None
    limits: NodeLimits | None = None
    oversubscribe_cpu: Annotated[float, Field(ge=1, le=16)] | None = None
    oversubscribe_memory: Annotated[float, Field(ge=1, le=4)] | None = None
    reserve: Annotated[float, Field(ge=0, le=0.9)] | None = None


class Removed(Model):
    # Connections of the machine that were ended.
    connections: int


class NodeRemoved(Query[Removed]):
    """Takes a node out and cuts its machine off the bus. With work on it only by force: that starts
    elsewhere, while the machine, which is no longer heard, may still run it."""

    owner, what, answer = "scheduler", "remove_node", Removed
    node: NodeName
    force: bool = False


class JoinTokenInfo(Model):
    id: str
    region: str
    node: NodeName | None
    labels: dict[str, str]
    created_by: UserId
    created_at: Moment
    expires_at: Moment
    revoked_at: Moment | None
    used_at: Moment | None
    used_by: NodeName | None


class NewJoinToken(Model):
    """The one time its text is told."""

    token: str
    info: JoinTokenInfo


class JoinTokenMade(Query[NewJoinToken]):
    owner, what, answer = "scheduler", "make_join_token", NewJoinToken
    region: str
    node: NodeName | None = None
    labels: dict[str, str] = {}
    created_by: UserId
    seconds: Annotated[int, Field(ge=60, le=30 * 86_400)] = 3600


class JoinTokenPage(Model):
    tokens: tuple[JoinTokenInfo, ...]
    next: str | None


class JoinTokens(Query[JoinTokenPage]):
    owner, what, answer = "scheduler", "join_tokens", JoinTokenPage
    after: str | None = None


class JoinTokenRevoked(Query[JoinTokenInfo]):
    owner, what, answer = "scheduler", "revoke_join_token", JoinTokenInfo
    token: str


class Joined(Model):
    node: NodeName
    region: str
    # What is sealed for the node alone.
    seal_key: str


class NodeJoined(Query[Joined]):
    """A machine with a token. It makes its key by itself, and logs in to the bus with it from now on: asked
    again with the same token and key, because the answer was lost, the answer is the same."""

    owner, what, answer = "scheduler", "join", Joined
    token: str
    key: Annotated[str, Field(min_length=40, max_length=200)]
    node: NodeName | None = None
    address: str
    machine: dict[str, str] = {}


class InstanceUse(Model):
    instance: InstanceId
    node: NodeName
    process: str
    index: int
    cpu_millis: int
    memory_mb: int
    at: Moment


class Traffic(Model):
    """Requests for a workload, as the ingresses of all nodes have answered them."""

    # Since it was first asked for.
    requests: int = 0
    failed: int = 0
    slow: int = 0
    seconds: float = 0
    # Of late: how many a second, and how long one took on average.
    per_second: float = 0
    mean_ms: float | None = None


class WorkloadUsage(Model):
    instances: tuple[InstanceUse, ...]
    volumes: tuple[VolumeUse, ...] = ()
    traffic: Traffic = Traffic()


class UsageOf(Query[WorkloadUsage]):
    """What the instances of a workload use, as far as their nodes have said lately."""

    owner, what, answer = "scheduler", "usage", WorkloadUsage
    workload: AppId


class SilentWorkloads(Model):
    workloads: tuple[AppId, ...]
    next: AppId | None


class SilentAfter(Query[SilentWorkloads]):
    """Those that have places for instances that requests go to, and of none of them a node has said lately
    that it answers: also what sleeps or has just begun."""

    owner, what, answer = "scheduler", "silent", SilentWorkloads
    after: AppId | None = None


class CopiesOf(Query[WorkloadCopies]):
    """Where the data of a workload is, and what there is of it elsewhere."""

    owner, what, answer = "scheduler", "copies", WorkloadCopies
    workload: AppId


class Wallet(Model):
    organization: OrganizationId
    balance: Money
    # Used since the last charge and not yet taken from the balance.
    accrued: Money


class WalletOf(Query[Wallet]):
    owner, what, answer = "billing", "wallet", Wallet
    organization: OrganizationId


class Charge(Model):
    workload: AppId
    period_start: Moment
    period_end: Moment
    seconds: int
    amount: Money


class LedgerEntry(Model):
    id: str
    at: Moment
    kind: Literal["credit", "charge"]
    amount: Money
    note: str


class Statement(Model):
    charges: tuple[Charge, ...]
    entries: tuple[LedgerEntry, ...]


class StatementOf(Query[Statement]):
    owner, what, answer = "billing", "statement", Statement
    organization: OrganizationId
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class Place(Model):
    process: str
    index: int
    node: NodeName


class Places(Model):
    places: tuple[Place, ...]


class PlacesOf(Query[Places]):
    """Where the instances of a workload are, or shall be."""

    owner, what, answer = "scheduler", "places", Places
    workload: AppId


QUERIES: tuple[type[Query[Any]], ...] = (
    WorkloadsAfter,
    DeploymentsPending,
    SourcePartOf,
    CredentialsOf,
    BuildLogAfter,
    BuildsOpen,
    ImageLookup,
    RegionsWithRoom,
    AllNodes,
    PlacesOf,
    PullPermitFor,
    KeepLines,
    NodeOf,
    NodeChanged,
    NodeRemoved,
    JoinTokenMade,
    JoinTokens,
    JoinTokenRevoked,
    NodeJoined,
    UsageOf,
    SilentAfter,
    CopiesOf,
    WalletOf,
    StatementOf,
)
