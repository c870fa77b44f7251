"""The models of the REST API: what a customer sends is strict, what he receives is an allow-list."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, StringConstraints, model_validator

from contracts.build_api import ChooseBuild
from contracts.ids import (
    AppId,
    CreditId,
    DeploymentId,
    OrganizationId,
    ProjectId,
    SourceId,
    UserId,
)
from contracts.model import Model, Moment, Strict
from contracts.money import Currency, Money
from contracts.reports import LogLine
from contracts.shapes import shaped
from contracts.sources_api import (
    ChooseDockerfile,
    ChooseGit,
    ChooseGitCredential,
    ChooseImage,
    ChooseRegistryLogin,
)
from contracts.workload import (
    NAME_PATTERN,
    NAME_WORDS,
    BuildSettings,
    GitSource,
    HealthCheck,
    Limits,
    Port,
    Process,
    Source,
)

Name = Annotated[str, shaped(NAME_PATTERN, NAME_WORDS)]
Email = Annotated[
    str,
    shaped(
        r"^[^@\s]+@[^@\s]+\.[^@\s.]+$",
        "an address such as name@example.org",
        to_lower=True,
        max_length=200,
    ),
]
Title = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Password = Annotated[SecretStr, Field(min_length=10, max_length=200)]
# In currency units with up to six decimals: "25.00".
Amount = Annotated[
    str, shaped(r"^\d{1,9}(\.\d{1,6})?$", "an amount such as 25 or 25.00, with at most six decimals")
]

AppStatus = Literal[
    "created", "building", "deploying", "running", "sleeping", "stopped", "suspended", "failed"
]
DeploymentStatus = Literal[
    "queued", "building", "deploying", "blocked", "running", "failed", "superseded", "cancelled"
]


class Problem(Model):
    code: str
    message: str
    details: dict[str, Any]


class Failure(Model):
    """Every error answer: `message` says what to do, `details` carries the facts."""

    error: Problem


class Register(Strict):
    email: Email
    password: Password
    organization: Title


class LogIn(Strict):
    email: Email
    password: Annotated[SecretStr, Field(max_length=200)]


class Token(Model):
    token: str
    expires_at: Moment


class Me(Model):
    id: UserId
    email: str
    administrator: bool
    organizations: tuple["OrganizationView", ...]


class OrganizationView(Model):
    id: OrganizationId
    name: str


class OrganizationList(Model):
    organizations: tuple[OrganizationView, ...]


class CreateOrganization(Strict):
    name: Title


class AccountedOrganization(OrganizationView):
    """What the administrator sees of an organization; no balance until billing has said one."""

    apps: int
    balance: Money | None
    created_at: Moment


class AccountedOrganizationList(Model):
    organizations: tuple[AccountedOrganization, ...]
    next: str | None


class GrantCredit(Strict):
    amount: Amount
    note: Annotated[str, StringConstraints(max_length=200)] = ""


class CreditView(Model):
    id: CreditId
    organization: OrganizationId
    amount: Money
    note: str
    at: Moment


class WalletView(Model):
    balance: Money
    accrued: Money


class RuntimeView(Model):
    name: str
    type: str
    version: str


class RuntimeList(Model):
    runtimes: tuple[RuntimeView, ...]


class RegionView(Model):
    name: str
    base_domain: str


class RegionList(Model):
    """The regions with room for another app."""

    regions: tuple[RegionView, ...]


LONGEST_CHECK = 4_000


class ChooseHealth(Strict):
    kind: Literal["tcp", "http", "command"] = "tcp"
    # For a check by command: a program and its arguments, run inside the instance. No shell reads them.
    command: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=1000)], ...], Field(max_length=50)
    ] = ()
    path: Annotated[str, shaped(r"^/[!-~]{0,500}$", "a path such as /healthz")] = "/"
    interval_seconds: Annotated[float, Field(gt=0, le=300)] = 10
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5
    retries: Annotated[int, Field(ge=1, le=20)] = 3
    start_seconds: Annotated[float, Field(gt=0, le=600)] = 60

    @model_validator(mode="after")
    def _has_a_command(self) -> Self:
        if (self.kind == "command") != bool(self.command):
            raise ValueError("`command` belongs to a check of kind command, and only there")
        if sum(len(word.encode()) for word in self.command) > LONGEST_CHECK:
            raise ValueError(f"`command` has more than {LONGEST_CHECK} bytes; put it into a script")
        if any(ord(character) < 32 or ord(character) == 127 for word in self.command for character in word):
            raise ValueError("`command` has a control character; put it into a script")
        return self

    def check(self) -> HealthCheck:
        return HealthCheck(**self.model_dump())


class CreateApp(Strict):
    name: Name
    plan: Annotated[str, StringConstraints(max_length=80)]
    region: Annotated[str, StringConstraints(max_length=80)] | None = None
    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    # None: what the build finds, else 8080.
    port: Port | None = None
    health: ChooseHealth = ChooseHealth()
    # Where it comes from, one of them; none: what is uploaded.
    git: ChooseGit | None = None
    image: ChooseImage | None = None
    dockerfile: ChooseDockerfile | None = None
    # For a private repository, or a private registry.
    git_credential: ChooseGitCredential | None = None
    registry_login: ChooseRegistryLogin | None = None
    # An app that names where it comes from is deployed at once.
    deploy: bool = True
    build: ChooseBuild = ChooseBuild()


class AppView(Model):
    id: AppId
    name: str
    project: ProjectId
    environment: str
    status: AppStatus
    reason: str | None
    url: str | None
    region: str
    plan: str
    replicas: int
    hourly: Money
    generation: int
    deployment: DeploymentId | None
    created_at: Moment


class AppDetail(AppView):
    port: Port
    health: HealthCheck
    limits: Limits
    processes: dict[str, Process]
    git: GitSource | None
    # Where it comes from: what a deployment that chooses nothing takes.
    source: Source | None
    # To be added to a private repository.
    deploy_key: str | None
    latest_deployment: DeploymentId | None
    build: BuildSettings


class AppList(Model):
    apps: tuple[AppView, ...]
    next: str | None


class OwnedApp(AppView):
    organization: OrganizationId


class OwnedAppList(Model):
    apps: tuple[OwnedApp, ...]
    next: str | None


class Scale(Strict):
    replicas: Annotated[int, Field(ge=0, le=100)]
    process: Annotated[str, StringConstraints(max_length=80)] = "web"


class Deploy(Strict):
    """At most one is chosen. None: what the app was made of, else the source uploaded last."""

    git: ChooseGit | None = None
    image: ChooseImage | None = None
    dockerfile: ChooseDockerfile | None = None
    source: SourceId | None = None


class Rollback(Strict):
    # None: the one that ran before.
    deployment: DeploymentId | None = None


class SourceView(Model):
    id: str
    sha256: str
    size: int
    files: int


class DeploymentView(Model):
    id: DeploymentId
    app: AppId
    number: int
    status: DeploymentStatus
    reason: str | None
    source: Source
    recipe: str | None
    image: str | None
    size_bytes: int | None
    commit: str | None
    commit_author: str | None
    commit_message: str | None
    exit_code: int | None
    failed_step: str | None
    seconds: float | None
    # What is good to know, such as a process that was found and has no instance yet.
    notes: tuple[str, ...]
    # What an instance printed as it came to life, or the last it said where it did not.
    log_tail: tuple[str, ...]
    created_at: Moment
    finished_at: Moment | None
    # Of the builds that wait, this one's place: 1 is begun next.
    position: int | None = None
    # The deployment that was built, where this one brings it back.
    rollback_of: DeploymentId | None = None


class DeploymentList(Model):
    deployments: tuple[DeploymentView, ...]
    next: str | None


class QueuedBuild(Model):
    deployment: DeploymentId
    app: AppId
    app_name: str | None
    organization: OrganizationId
    state: Literal["queued", "building"]
    position: int | None
    attempts: int
    queued_at: Moment
    started_at: Moment | None


class QueuedBuildList(Model):
    builds: tuple[QueuedBuild, ...]
    running: int
    waiting: int
    next: str | None


class BuildCache(Strict):
    enabled: bool


class LogPage(Model):
    """`next` is the `after` of the page that follows; there is always one, until `finished`."""

    lines: tuple[LogLine, ...]
    finished: bool
    next: int


class UsageLine(Model):
    app: AppId
    name: str | None
    seconds: int
    amount: Money


class UsageView(Model):
    currency: Currency
    # The first moment accounted for; None: nothing has been charged yet.
    since: Moment | None
    total: Money
    lines: tuple[UsageLine, ...]


class AlertView(Model):
    id: str
    service: str
    severity: Literal["warning", "critical"]
    title: str
    details: dict[str, str]
    at: Moment
    # Since when it does not stand any more; what merely happened stands, as it has no end.
    over_at: Moment | None


class AlertList(Model):
    alerts: tuple[AlertView, ...]
    next: str | None
