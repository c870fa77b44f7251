"""Questions to the owner of the data, over NATS request/reply: `query.<owner>.<what>`."""

from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import Field

from contracts.events import DeploymentRequested
from contracts.ids import AppId, DeploymentId, NodeName, OrganizationId, SourceId
from contracts.model import Model, Moment
from contracts.money import Money
from contracts.reports import LogLine, NodeCapacity, NodeUsage
from contracts.workload import WorkloadSpec

A = TypeVar("A", bound=Model)


class Query(Model, Generic[A]):
    owner: ClassVar[str]
    what: ClassVar[str]
    answer: ClassVar[type[Model]]

    @classmethod
    def subject(cls) -> str:
        return f"query.{cls.owner}.{cls.what}"


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


class BuildLogPage(Model):
    lines: tuple[LogLine, ...]
    # Nothing will be added any more.
    finished: bool


class BuildLogAfter(Query[BuildLogPage]):
    owner, what, answer = "builder", "log", BuildLogPage
    deployment: DeploymentId
    after: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=2000)] = 1000


class RegionInfo(Model):
    name: str
    base_domain: str
    has_room: bool


class Regions(Model):
    regions: tuple[RegionInfo, ...]


class RegionsWithRoom(Query[Regions]):
    owner, what, answer = "scheduler", "regions", Regions


class NodeInfo(Model):
    name: NodeName
    region: str
    status: Literal["online", "offline"]
    last_seen_at: Moment | None
    capacity: NodeCapacity
    allocated: NodeUsage
    used: NodeUsage
    instances: int
    engine: str


class Nodes(Model):
    nodes: tuple[NodeInfo, ...]


class AllNodes(Query[Nodes]):
    owner, what, answer = "scheduler", "nodes", Nodes


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


QUERIES: tuple[type[Query[Any]], ...] = (
    WorkloadsAfter,
    DeploymentsPending,
    SourcePartOf,
    BuildLogAfter,
    RegionsWithRoom,
    AllNodes,
    WalletOf,
    StatementOf,
)
