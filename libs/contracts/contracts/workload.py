"""The workload: one whole specification, kept by the gateway, followed by everybody else.

A specification is never a difference. It carries a `generation` that only the gateway raises; a reader
keeps the newest it has seen, so a lost, late or doubled message heals with the next one.
"""

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from contracts.copies import CopyClaim
from contracts.ids import (
    AppId,
    DeploymentId,
    NodeName,
    OrganizationId,
    ProjectId,
    ReleaseId,
    SourceId,
    VolumeId,
)
from contracts.model import Model, Moment
from contracts.money import Rate

NAME_PATTERN = r"^[a-z0-9][a-z0-9-]{0,38}[a-z0-9]$"
NAME_WORDS = "2 to 40 lower-case letters, digits and dashes, with no dash at an end"

Kind = Literal["app", "database", "service", "box"]
Port = Annotated[int, Field(ge=1, le=65535)]


class Limits(Model):
    """What one instance may use; the engine enforces it. The requests are what a node reserves of it: as much
    the instance has also when all want more than there is. None: all it may use."""

    cpu_millis: Annotated[int, Field(gt=0)]
    memory_mb: Annotated[int, Field(ge=16)]
    disk_mb: Annotated[int, Field(gt=0)]
    pids: Annotated[int, Field(ge=8)] = 256
    cpu_request_millis: Annotated[int, Field(gt=0)] | None = None
    memory_request_mb: Annotated[int, Field(ge=16)] | None = None

    @property
    def reserved_cpu_millis(self) -> int:
        return self.cpu_request_millis or self.cpu_millis

    @property
    def reserved_memory_mb(self) -> int:
        return self.memory_request_mb or self.memory_mb


class HealthCheck(Model):
    """When an instance counts as ready, and when as broken."""

    kind: Literal["tcp", "http", "command"] = "tcp"
    path: str = "/"
    # Of a check by a command, which is run inside the instance as its user: exit code 0 is healthy.
    command: tuple[str, ...] = ()
    interval_seconds: Annotated[float, Field(gt=0, le=300)] = 10
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5
    retries: Annotated[int, Field(ge=1, le=20)] = 3
    start_seconds: Annotated[float, Field(gt=0, le=600)] = 60


class Process(Model):
    """A Procfile type. `command` runs in a shell *inside* the instance; none means the image's own."""

    command: str | None = None
    replicas: Annotated[int, Field(ge=0, le=100)] = 1


class Volume(Model):
    """Data that outlives instances and releases: a file system of a fixed size, where the workload runs."""

    id: VolumeId
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    # Where every instance of the workload finds it.
    path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+){1,8}$", max_length=200)]
    size_mb: Annotated[int, Field(ge=16, le=1_048_576)]
    # Encrypted on the disk, with a key made of that of the node where it was made.
    encrypted: bool = False


class Needs(Model):
    """What a plan asks of a node besides room, and how its replicas lie to each other."""

    labels: dict[str, str] = {}
    # A runtime class of the engine, by its name there; none: the engine's own choice.
    runtime: str | None = None
    # Of the image, as the engine calls it ("amd64"); none: any.
    architecture: str | None = None
    # Replicas go to as many nodes as there are, rather than together; `apart`: never two to one node.
    spread: bool = False
    apart: bool = False


class WorkloadSpec(Model):
    id: AppId
    kind: Kind = "app"
    name: str
    environment: str = "production"
    organization: OrganizationId
    project: ProjectId
    generation: Annotated[int, Field(ge=1)]
    state: Literal["running", "stopped", "deleted"]
    region: str
    plan: str
    limits: Limits
    needs: Needs = Needs()
    rate: Rate
    # The user and group every process of the organization runs as on a node; unique to the organization.
    uid: Annotated[int, Field(ge=100_000)]
    processes: dict[str, Process] = {"web": Process()}
    port: Port = 8080
    health: HealthCheck = HealthCheck()
    grace_seconds: Annotated[float, Field(ge=0, le=300)] = 10
    image: str | None = None
    release: ReleaseId | None = None
    deployment: DeploymentId | None = None
    # The trace of the request that led to this generation, for work that goes on after its message.
    trace: str | None = None
    # Raised to replace every instance without another change.
    restarts: Annotated[int, Field(ge=0)] = 0
    # The environment of its instances, sealed by the gateway; none where it has no variables, and in what a
    # node is told, who has them in `NodeWorkload.variables`.
    variables: str | None = None
    # The same for the same variables, however often they are sealed; it tells nothing about them.
    variables_digest: str | None = None
    volumes: tuple[Volume, ...] = ()
    # After so long without a request its instances stop, and the next request starts them; none: never.
    sleep_seconds: Annotated[float, Field(gt=0)] | None = None
    # So often its volumes are copied to another node; none: never.
    copy_minutes: Annotated[int, Field(ge=1)] | None = None

    @property
    def wants_instances(self) -> bool:
        return self.state == "running" and self.image is not None

    def replicas(self) -> int:
        return sum(p.replicas for p in self.processes.values()) if self.wants_instances else 0

    def fingerprint(self) -> str:
        """Changes exactly when a running instance must be replaced to match the specification."""
        body = self.model_dump_json(
            include={"image", "release", "restarts", "limits", "uid", "port", "health", "organization"},
            exclude={"health": {"command"}, "limits": {"cpu_request_millis", "memory_request_mb"}},
        ) + repr(sorted((name, p.command) for name, p in self.processes.items()))
        # What came to be said later says nothing where there is none of it.
        body += repr(self.health.command) if self.health.command else ""
        requests = self.limits.cpu_request_millis, self.limits.memory_request_mb
        body += repr(requests) if any(requests) else ""
        body += self.variables_digest or ""
        body += self.needs.runtime or ""
        body += "".join(f"{volume.id}:{volume.path}:{volume.size_mb}" for volume in self.volumes)
        return hashlib.sha256(body.encode()).hexdigest()[:16]


class Slot(Model):
    """A place for one instance: the n-th replica of a process."""

    process: str
    index: Annotated[int, Field(ge=0)]

    def __str__(self) -> str:
        return f"{self.process}.{self.index + 1}"


class NodeWorkload(Model):
    """What one node has to run of one workload: the value in the `desired` bucket.

    `revision` is raised by the scheduler with every change; an agent never goes back to a lower one.
    """

    node: NodeName
    revision: Annotated[int, Field(ge=1)]
    spec: WorkloadSpec
    slots: tuple[Slot, ...]
    # The specification's variables, sealed for this node alone; none where there are none, or where they
    # could not be read: then the specification has a digest all the same.
    variables: str | None = None
    # How often the workload's data has gone to another node. What a node has from before is not what is to
    # run; and when the workload has come to life with `proven`, it is put aside.
    home: Annotated[int, Field(ge=0)] = 0
    proven: Annotated[int, Field(ge=0)] = 0
    # What its data is made of where it has come to; none: its home is elsewhere, or it has none yet.
    claim: CopyClaim | None = None
    # The last of its data is about to go to another node: nothing begins on it, and what has it ends.
    moving: bool = False
    # Of encrypted volumes that were made on other nodes, sealed for this one.
    volume_keys: str | None = None
    # Volumes that were there before: none of these is made anew where it is missing.
    made: tuple[VolumeId, ...] = ()


class Route(Model):
    """hostname -> workload: the value in the `routes` bucket."""

    hostname: str
    workload: AppId
    organization: OrganizationId
    # Raised by domains with every change of this hostname.
    revision: Annotated[int, Field(ge=1)]


class Endpoints(Model):
    """The healthy instances of a workload on one node: the value in the `endpoints` bucket."""

    node: NodeName
    workload: AppId
    addresses: tuple[str, ...]
    at: Moment


class GitSource(Model):
    kind: Literal["git"] = "git"
    url: str
    # A branch, a tag or a whole commit; none: the repository's default branch.
    ref: str | None = None
    submodules: bool = False


class UploadSource(Model):
    kind: Literal["upload"] = "upload"
    source: SourceId
    sha256: str
    size: int


class ImageSource(Model):
    """An image that somebody else has built: pulled and published, not built."""

    kind: Literal["image"] = "image"
    reference: str


class DockerfileSource(Model):
    """A Dockerfile that needs no file beside it."""

    kind: Literal["dockerfile"] = "dockerfile"
    text: str


Source = Annotated[GitSource | UploadSource | ImageSource | DockerfileSource, Field(discriminator="kind")]


class BuildSettings(Model):
    """What the customer chose about the build; what is absent, the recipe decides."""

    # The folder of the source that is the app; none: all of it.
    folder: str | None = None
    dockerfile: str = "Dockerfile"
    # Of the Dockerfile: the stage to build, and what its ARGs are.
    target: str | None = None
    arguments: dict[str, str] = {}
    runtime: str | None = None
    # Classic buildpacks, by name or repository, in the order they run.
    buildpacks: tuple[str, ...] = ()
    # A builder image of Cloud Native Buildpacks.
    builder: str | None = None
    install_command: str | None = None
    build_command: str | None = None
    start_command: str | None = None


class RuntimePreset(Model):
    """A runtime the administrator offers: the stack image and the commands a recipe starts from."""

    name: str
    type: str
    version: str
    image: str
    # Where it is built, with the compilers; none: in `image`.
    build_image: str | None = None
    install_command: str | None = None
    build_command: str | None = None
    start_command: str | None = None


class Commit(Model):
    """What was built, where it came from a repository."""

    commit: str | None = None
    commit_author: str | None = None
    commit_message: str | None = None


class BuildSucceeded(Commit):
    outcome: Literal["succeeded"] = "succeeded"
    image: str
    digest: str
    size_bytes: int
    recipe: str
    processes: dict[str, str] = {}
    port: Port | None = None


class BuildFailed(Commit):
    outcome: Literal["failed"] = "failed"
    step: str
    exit_code: int | None
    message: str
    hint: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.message:
            raise ValueError("a failure needs a message")
        return self


class BuildCancelled(Model):
    """Nobody wants it any more; `message` says why."""

    outcome: Literal["cancelled"] = "cancelled"
    message: str


BuildResult = Annotated[BuildSucceeded | BuildFailed | BuildCancelled, Field(discriminator="outcome")]
