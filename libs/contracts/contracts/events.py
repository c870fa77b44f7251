"""Every event, in the order in which data flows through the platform.

The subject of an event is its name; events of a node add the node's name as last token, so that a node's
credentials can be confined to it. Change is additive only: see `tests/contracts/golden/`.
"""

from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from contracts.ids import (
    AppId,
    BuildId,
    CreditId,
    DeploymentId,
    EventId,
    InstanceId,
    JobId,
    NodeName,
    OrganizationId,
    UserId,
    new_id,
)
from contracts.jobs import Job, JobKind, JobLine, JobOutcome
from contracts.model import Model, Moment, Words
from contracts.money import Money, Rate
from contracts.workload import (
    BuildResult,
    BuildSettings,
    Limits,
    RuntimePreset,
    Slot,
    Source,
    WorkloadSpec,
)


class Event(Model):
    name: ClassVar[str]
    id: EventId = Field(default_factory=lambda: new_id("evt"))
    at: Moment = Field(default_factory=lambda: datetime.now(UTC))

    def subject(self) -> str:
        return self.name


class NodeEvent(Event):
    node: NodeName

    def subject(self) -> str:
        return f"{self.name}.{self.node}"


# --- a customer's intent -----------------------------------------------------------------------------


class AppCreated(Event):
    name = "app.created"
    spec: WorkloadSpec


class HostnameAssigned(Event):
    name = "hostname.assigned"
    workload: AppId
    organization: OrganizationId
    hostname: str
    url: str


class DeploymentRequested(Event):
    name = "deployment.requested"
    deployment: DeploymentId
    number: int
    workload: AppId
    organization: OrganizationId
    app_name: str
    source: Source
    build: BuildSettings
    # The presets the administrator offers to this app; the recipe picks one of them.
    runtimes: tuple[RuntimePreset, ...]
    limits: Limits
    # The user and group its processes will run as; none: not told.
    uid: Annotated[int, Field(ge=1)] | None = None
    # Every variable of the app, sealed for the builder: what a build gets, and what its log must not show.
    variables: str | None = None
    environment: str = "production"
    # Which cache of the app the build may use; raised to begin with an empty one. None: no cache at all.
    cache: int | None = 0
    # The trace of the request, for the build that goes on after this message.
    trace: str | None = None


class DeploymentCancelled(Event):
    """Nobody waits for its build any more: one that waits is not begun, one under way is stopped."""

    name = "deployment.cancelled"
    deployment: DeploymentId
    workload: AppId
    organization: OrganizationId
    reason: str


# --- source to image -----------------------------------------------------------------------------------


class BuildStarted(Event):
    name = "build.started"
    build: BuildId
    deployment: DeploymentId
    workload: AppId
    organization: OrganizationId


class BuildFinished(Event):
    name = "build.finished"
    build: BuildId
    deployment: DeploymentId
    workload: AppId
    organization: OrganizationId
    seconds: float
    result: BuildResult
    # How many lines its log has: what else belongs to the deployment's log follows them.
    lines: Annotated[int, Field(ge=0)] = 0


# --- a release goes to nodes -----------------------------------------------------------------------------


class AppChanged(Event):
    """The desired state of a workload is new: a release, a start, a stop, a suspension."""

    name = "app.changed"
    spec: WorkloadSpec


class AppDeleted(Event):
    name = "app.deleted"
    spec: WorkloadSpec


class PlacementDecided(Event):
    name = "placement.decided"
    workload: AppId
    organization: OrganizationId
    generation: int
    deployment: DeploymentId | None
    nodes: tuple[NodeName, ...]
    # Nodes that cannot be heard, of which it takes over what ran there.
    lost: tuple[NodeName, ...] = ()


class PlacementBlocked(Event):
    name = "placement.blocked"
    workload: AppId
    organization: OrganizationId
    generation: int
    deployment: DeploymentId | None
    # node -> why it cannot take the workload, in words ("memory short by 256 MB")
    reasons: dict[str, str]
    # Nodes it is on that cannot be heard.
    lost: tuple[NodeName, ...] = ()


class VolumesMoved(Event):
    """A workload's data has another home: a copy of the last moment, or, where its node was lost, the newest
    there was."""

    name = "volumes.moved"
    workload: AppId
    organization: OrganizationId
    source: NodeName
    target: NodeName
    taken_at: Moment
    # What was written between `taken_at` and then is lost; none: nothing is.
    lost_until: Moment | None = None


# --- a node at work --------------------------------------------------------------------------------------


class InstanceStarted(NodeEvent):
    name = "instance.started"
    instance: InstanceId
    workload: AppId
    organization: OrganizationId
    slot: Slot
    generation: int
    deployment: DeploymentId | None
    rate: Rate
    started_at: Moment


class InstanceStopped(NodeEvent):
    """Carries everything `instance.started` did: the two may arrive in any order."""

    name = "instance.stopped"
    instance: InstanceId
    workload: AppId
    organization: OrganizationId
    slot: Slot
    generation: int
    deployment: DeploymentId | None
    rate: Rate
    started_at: Moment
    stopped_at: Moment
    reason: Literal["replaced", "stopped", "deleted", "moved", "unhealthy", "lost", "ended", "slept"]
    exit_code: int | None = None
    words: Words | None = None


class InstanceCrashed(NodeEvent):
    """It ended by itself, and is started again; who does so often is told of more and more seldom."""

    name = "instance.crashed"
    instance: InstanceId
    workload: AppId
    organization: OrganizationId
    slot: Slot
    exit_code: int | None
    # In all, such as "web.1 crashed 5 times in 2 minutes, next try in 40 s; the last time: exit code 1".
    words: Words
    # Crashes of the slot in the last minutes, and until about when it stays away now.
    crashes: Annotated[int, Field(ge=1)]
    seconds_away: Annotated[float, Field(ge=0)]


class RolloutFinished(NodeEvent):
    """One node has brought a generation to life, or has kept the old one and says why."""

    name = "rollout.finished"
    workload: AppId
    organization: OrganizationId
    generation: int
    deployment: DeploymentId | None
    ok: bool
    running: Annotated[int, Field(ge=0)]
    reason: Words | None = None
    log_tail: tuple[Words, ...] = ()
    # Its instances on this node are stopped until somebody asks for them.
    asleep: bool = False


class SleepChanged(NodeEvent):
    """A node let a workload fall asleep, or woke it: of its part of the workload, and within its order."""

    name = "sleep.changed"
    workload: AppId
    organization: OrganizationId
    asleep: bool
    words: Words | None = None


class NodeRemoved(Event):
    """A node was taken out. Its machine may run on, heard by nobody; one that joins under its name later is
    another node."""

    name = "node.removed"
    node: NodeName
    last_seen_at: Moment


# --- one-off work ------------------------------------------------------------------------------------------


class JobRequested(Event):
    """Whole, so that it can be said again at any time: one that is known already changes nothing."""

    name = "job.requested"
    job: Job


class JobCancelled(Event):
    name = "job.cancelled"
    job: JobId
    workload: AppId
    organization: OrganizationId


class JobBlocked(Event):
    """It waits for room; said again when the reasons change."""

    name = "job.blocked"
    job: JobId
    workload: AppId
    organization: OrganizationId
    # As those of `placement.blocked`.
    reasons: dict[str, str]


class JobPlaced(Event):
    """The node that may run it, and that alone may speak of it."""

    name = "job.placed"
    job: JobId
    workload: AppId
    organization: OrganizationId
    placed_on: NodeName


class JobFinished(NodeEvent):
    """What a node has to say of a job it was given, once."""

    name = "job.finished"
    job: JobId
    workload: AppId
    organization: OrganizationId
    outcome: JobOutcome
    exit_code: int | None = None
    words: Words | None = None
    seconds: Annotated[float, Field(ge=0)] = 0
    tail: tuple[JobLine, ...] = ()
    # How many lines there were.
    lines: Annotated[int, Field(ge=0)] = 0


class JobEnded(Event):
    """The one end of a job, from its owner: the node's word, or that none is to be expected."""

    name = "job.ended"
    job: JobId
    kind: JobKind
    workload: AppId
    organization: OrganizationId
    deployment: DeploymentId | None
    outcome: JobOutcome
    exit_code: int | None = None
    words: Words | None = None
    seconds: Annotated[float, Field(ge=0)] = 0
    tail: tuple[JobLine, ...] = ()
    lines: Annotated[int, Field(ge=0)] = 0


# --- money -------------------------------------------------------------------------------------------------


class CreditGranted(Event):
    """The administrator gave an organization money; billing books it, once per `credit`."""

    name = "credit.granted"
    credit: CreditId
    organization: OrganizationId
    amount: Money
    note: str
    by: UserId


class BillingTick(Event):
    """A period has ended. Its id is made of the period, so however many replicas publish it, it is one."""

    name = "billing.tick"
    period_start: Moment
    period_end: Moment


class WalletChanged(Event):
    name = "wallet.changed"
    organization: OrganizationId
    # Counts the changes of this wallet: a reader keeps the highest.
    sequence: int
    balance: Money
    # What was booked, where it was a credit: the balance has it from this sequence on.
    credit: CreditId | None = None


# --- the platform about itself -----------------------------------------------------------------------------


class AlertRaised(Event):
    name = "alert.raised"
    service: str
    severity: Literal["warning", "critical"]
    title: str
    details: dict[str, str] = {}
    # It stands until another one about the same, such as "node/n1/disk", tells that it is `over`.
    # None: it merely happened.
    about: str | None = None
    over: bool = False


EVENTS: tuple[type[Event], ...] = (
    AppCreated,
    HostnameAssigned,
    DeploymentRequested,
    DeploymentCancelled,
    BuildStarted,
    BuildFinished,
    AppChanged,
    AppDeleted,
    PlacementDecided,
    PlacementBlocked,
    VolumesMoved,
    InstanceStarted,
    InstanceStopped,
    InstanceCrashed,
    RolloutFinished,
    SleepChanged,
    NodeRemoved,
    JobRequested,
    JobCancelled,
    JobBlocked,
    JobPlaced,
    JobFinished,
    JobEnded,
    CreditGranted,
    BillingTick,
    WalletChanged,
    AlertRaised,
)

BY_NAME: dict[str, type[Event]] = {event.name: event for event in EVENTS}


def event_for(subject: str) -> type[Event] | None:
    """The event a subject carries: the name itself, or the name and a node."""
    return BY_NAME.get(subject) or BY_NAME.get(subject.rpartition(".")[0])
