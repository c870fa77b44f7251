"""The container engine as the agent sees it: instances with an identity, kept apart by organization.

The words are those of the design and nothing of any one engine shows, so that others fit behind it.
`tests/ports/test_engine.py` is the contract: every implementation passes it.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from contracts.lines import Line
from contracts.money import Rate
from contracts.workload import HealthCheck, Limits, Slot, WorkloadSpec

# The process that requests are routed to, and whose health can be asked from outside.
ROUTED = "web"


@dataclass(frozen=True, slots=True)
class Identity:
    """What an instance is from its first moment to its last; the engine keeps it beside the instance."""

    instance: str
    workload: str
    organization: str
    slot: Slot
    generation: int
    deployment: str | None
    fingerprint: str
    rate: Rate
    started_at: datetime
    port: int
    health: HealthCheck
    grace_seconds: float
    # It runs once, for this job, and is no replica of anything.
    job: str | None = None

    @classmethod
    def of(
        cls, spec: WorkloadSpec, slot: Slot, instance: str, started_at: datetime, job: str | None = None
    ) -> "Identity":
        return cls(
            instance=instance,
            workload=spec.id,
            organization=spec.organization,
            slot=slot,
            generation=spec.generation,
            deployment=spec.deployment,
            fingerprint=spec.fingerprint(),
            rate=spec.rate,
            started_at=started_at,
            port=spec.port,
            health=spec.health,
            grace_seconds=spec.grace_seconds,
            job=job,
        )


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of this machine as the instance sees it. Where the folder is missing, it does not start."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Blueprint:
    """An instance to be made. `command` runs in a shell inside it; none means what the image says.

    That of a job is not started again when it ends. `terminal`: somebody will sit in front of it.
    """

    identity: Identity
    image: str
    command: str | None
    uid: int
    limits: Limits
    environment: dict[str, str] = field(default_factory=dict)
    terminal: bool = False
    # A runtime class of the engine; none: the engine's own choice.
    runtime: str | None = None
    mounts: tuple[Mount, ...] = ()


# "restarting": it ended and the engine is about to start it again by itself.
State = Literal["created", "running", "restarting", "exited"]


@dataclass(frozen=True, slots=True)
class Instance:
    """`address` is where its ports are reached from this machine; it stays the same across restarts."""

    identity: Identity
    state: State
    address: str
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class EngineEvent:
    kind: Literal["started", "died", "removed"]
    instance: str
    workload: str
    exit_code: int | None = None
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How an instance that does not run ended last."""

    exit_code: int
    out_of_memory: bool


@dataclass(frozen=True, slots=True)
class Chunk:
    stream: Literal["stdout", "stderr"]
    data: bytes


class LineReader(Protocol):
    """What an instance says, line by line. Blocking, and cheap where there is nothing new."""

    def read(self, most: int) -> list[Line]:
        """What has come since the last time, of about so many bytes at most."""
        ...

    def rest(self) -> list[Line]:
        """The line that has begun and will not be ended any more."""
        ...

    def close(self) -> None: ...


class Session(Protocol):
    """What a process says, and, where it listens, what it is told. A terminal has one stream only."""

    async def read(self) -> Chunk | None:
        """None at the end."""
        ...

    async def write(self, data: bytes) -> None: ...

    async def end_input(self) -> None: ...

    async def resize(self, rows: int, columns: int) -> None: ...

    async def exit_code(self) -> int | None:
        """Of what was begun with the session, after its end."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU counts up since the instance was last started; memory is what it holds now."""

    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Credentials:
    """A log-in, or a token in place of one."""

    user: str = ""
    password: str = field(default="", repr=False)
    token: str | None = field(default=None, repr=False)

    def told(self) -> dict[str, str]:
        """As engines and registries know it."""
        if self.token is not None:
            return {"registrytoken": self.token}
        return {"username": self.user, "password": self.password}


@dataclass(frozen=True, slots=True)
class EngineInfo:
    name: str
    version: str
    cpu_millis: int
    memory_mb: int
    architecture: str
    # Classes of isolation an instance may ask for by name.
    runtimes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


class ContainerEngine(Protocol):
    """Raises `Unavailable` when the engine does not answer, `ProviderFailed` with its reason when it refuses,
    `NotFound` for an instance or an image that is not there."""

    async def info(self) -> EngineInfo: ...

    async def reassert(self) -> None:
        """Networks and rules are as they must be, whatever somebody did to them; as often as one likes."""

    async def image_present(self, image: str) -> bool: ...

    async def pull(self, image: str, credentials: Credentials | None = None) -> None: ...

    async def create(self, blueprint: Blueprint) -> Instance:
        """Makes it, and its organization's network where that is missing; does not start it."""
        ...

    async def start(self, instance: str) -> None: ...

    async def stop(self, instance: str, grace_seconds: float) -> int | None:
        """Asks, waits, kills; it stays down. The exit code, or none when there is no such instance."""

    async def remove(self, instance: str) -> None:
        """Whatever its state; nothing happens when it is gone. Takes along what only it used."""

    async def instances(self, workload: str | None = None) -> tuple[Instance, ...]:
        """Every instance of this node, or of one workload on it; none that runs for a job."""
        ...

    async def jobs(self) -> tuple[Instance, ...]:
        """Every instance that runs, or ran, for a job."""
        ...

    async def ending(self, instance: str) -> Ending | None:
        """None while it runs, and for one that has not run yet."""
        ...

    async def output(self, instance: str) -> Session:
        """All that a started instance has said and says, to its end; it cannot be told anything."""
        ...

    async def attach(self, instance: str) -> Session:
        """The terminal of an instance that is not started yet."""
        ...

    async def execute(
        self, instance: str, command: tuple[str, ...], environment: dict[str, str], *, terminal: bool
    ) -> Session:
        """Another process inside a running instance, as its user."""
        ...

    async def lines(self, instance: str, after: int) -> LineReader:
        """Of one that has been started: what it has said since a moment, in nanoseconds since 1970, as long
        as the engine keeps it, and what it says from now on."""
        ...

    async def log_tail(self, instance: str, lines: int) -> tuple[str, ...]: ...

    async def usage(self, instance: str) -> Usage:
        """Nothing, where it does not run. Cheap."""
        ...

    async def written(self, instance: str, most: int) -> int:
        """Bytes on its own disk, volumes aside; counted until they are more than `most`. Takes a while."""
        ...

    def events(self) -> AsyncIterator[EngineEvent | None]:
        """None once the stream is open: from then on nothing is missed. Ends by `Unavailable`."""
        ...

    async def close(self) -> None: ...
