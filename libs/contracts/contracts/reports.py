"""What is said often, and may be lost without harm: plain NATS, no stream, no outbox.

Every report is whole: the next one says everything again. Counters are cumulative and come with the boot
they count from, so a lost, doubled or late report changes nothing.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import AwareDatetime, Field

from contracts.ids import (
    AppId,
    BuildId,
    CopyId,
    DeploymentId,
    InstanceId,
    JobId,
    NodeName,
    OrganizationId,
    VolumeId,
)
from contracts.jobs import JobLine
from contracts.mesh import Host
from contracts.model import Model, Moment, Words
from contracts.money import Rate
from contracts.workload import Slot


class Report(Model):
    name: ClassVar[str]

    def subject(self) -> str:
        return self.name


class NodeCapacity(Model):
    cpu_millis: int
    memory_mb: int
    disk_mb: int


class NodeUsage(Model):
    cpu_millis: int
    memory_mb: int
    disk_mb: int
    load: float


class InstanceUsage(Model):
    # Since the instance was last started; it only grows, until it is started again.
    cpu_seconds: float
    # Of one second, on average since the report before.
    cpu_millis: int
    memory_mb: int


class RunningInstance(Model):
    instance: InstanceId
    workload: AppId
    organization: OrganizationId
    slot: Slot
    generation: int
    deployment: DeploymentId | None
    rate: Rate
    started_at: Moment
    healthy: bool
    # None: not known at the moment.
    usage: InstanceUsage | None = None


class VolumeUse(Model):
    volume: VolumeId
    workload: AppId
    used_mb: int
    size_mb: int


class NodeHeartbeat(Report):
    name = "node.heartbeat"
    node: NodeName
    region: str
    # A new one with every start of the agent; `sequence` counts the reports since then.
    boot: str
    sequence: Annotated[int, Field(ge=1)]
    at: Moment
    capacity: NodeCapacity
    used: NodeUsage
    engine: str
    # It has not answered for a minute: what runs may go on, and nothing can be begun.
    engine_away: bool = False
    # The version of the agent.
    agent: str = ""
    # Of the machine, and the runtime classes of its engine; as the engine calls them.
    architecture: str | None = None
    runtimes: tuple[str, ...] = ()
    instances: tuple[RunningInstance, ...]
    # Those that are mounted.
    volumes: tuple[VolumeUse, ...] = ()

    def subject(self) -> str:
        return f"{self.name}.{self.node}"


class TrafficCount(Model):
    """Requests for a workload that the ingress of a node has answered since it was started."""

    workload: AppId
    requests: int
    # Answered with a status of 500 or above; and not within a second.
    failed: int
    slow: int
    # What all of them took together.
    seconds: float


class NodeTraffic(Report):
    """Cumulative since the ingress was started, which `boot` names: a lost one changes nothing. What has
    not been asked for lately is left out."""

    name = "node.traffic"
    node: NodeName
    boot: str
    at: Moment
    counts: tuple[TrafficCount, ...]

    def subject(self) -> str:
        return f"{self.name}.{self.node}"


class LogLine(Model):
    """One line of a build: `sequence` counts from 1 without a gap within the deployment."""

    sequence: Annotated[int, Field(ge=1)]
    at: AwareDatetime
    stream: Literal["stdout", "stderr", "platform"]
    step: str
    text: str


class BuildLog(Report):
    """New lines of a build log, live; the stored log is the truth and fills every gap."""

    name = "build.log"
    build: BuildId
    deployment: DeploymentId
    lines: tuple[LogLine, ...]

    def subject(self) -> str:
        return f"{self.name}.{self.deployment}"


class JobOutput(Report):
    """The newest lines a job has written, some of them said before: what was lost comes with the next."""

    name = "job.output"
    node: NodeName
    job: JobId
    lines: tuple[JobLine, ...]

    def subject(self) -> str:
        return f"{self.name}.{self.node}"


class NodePeer(Report):
    """Where other nodes reach this one, and its wish for a certificate; said until `peers` has both."""

    name = "node.peer"
    node: NodeName
    # None: it does not know; then the address it joined from is taken.
    host: Host | None = None
    port: Annotated[int, Field(ge=1, le=65535)]
    # A certificate signing request (PEM): of it the key alone counts.
    request: Annotated[str, Field(max_length=4000)]

    def subject(self) -> str:
        return f"{self.name}.{self.node}"


class CopyState(Report):
    """How far a copy has come, by the node that was ordered to take or to drop it; said until nothing is
    ordered any more."""

    name = "copy.state"
    node: NodeName
    copy_id: CopyId
    workload: AppId
    phase: Literal["copying", "complete", "dropped"]
    done_mb: Annotated[int, Field(ge=0)] = 0
    total_mb: Annotated[int, Field(ge=0)] = 0
    # What had to be sent: blocks that were there already are not.
    sent_mb: Annotated[int, Field(ge=0)] = 0
    # Why it does not get on; and that it will not for a long time.
    words: Words | None = None
    refused: bool = False
    # Of a complete one: the moment whose data it has, of which volumes, and for how long these stood still.
    taken_at: Moment | None = None
    digest: str | None = None
    volumes: tuple[VolumeId, ...] = ()
    frozen_ms: Annotated[int, Field(ge=0)] = 0

    def subject(self) -> str:
        return f"{self.name}.{self.node}"


class LinesKept(Report):
    """There are more lines of a workload, or of a node itself, than before: whoever follows them reads on."""

    name = "lines.kept"
    of: AppId | NodeName

    def subject(self) -> str:
        return f"{self.name}.{self.of}"


class HeldCopy(Model):
    workload: AppId
    # The moment whose data it has.
    taken_at: Moment


class CopiesHeld(Report):
    """The complete copies a node has, a page at a time: all of those of the workloads behind `after` and up
    to `until`. So what is missing in a page is missing on the node."""

    name = "copies.held"
    # Of them in a page: a message has room for many more.
    PAGE: ClassVar[int] = 2000
    node: NodeName
    after: AppId | None = None
    # None: there is no further page.
    until: AppId | None = None
    copies: tuple[HeldCopy, ...]

    def subject(self) -> str:
        return f"{self.name}.{self.node}"


REPORTS: tuple[type[Report], ...] = (
    NodeHeartbeat,
    NodeTraffic,
    BuildLog,
    JobOutput,
    NodePeer,
    CopyState,
    LinesKept,
    CopiesHeld,
)
