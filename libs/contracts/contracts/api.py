"""The models of the REST API: what a customer sends is strict, what he receives is an allow-list."""

from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints

from contracts.ids import AppId, CreditId, DeploymentId, OrganizationId, ProjectId, UserId
from contracts.model import Model, Moment, Strict
from contracts.money import Currency, Money
from contracts.workload import (
    NAME_PATTERN,
    BuildSettings,
    HealthCheck,
    Limits,
    Port,
    Source,
)

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Email = Annotated[
    str,
    StringConstraints(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s.]+$", to_lower=True, max_length=200),
]
Title = Annotated[str, StringConstraints(min_length=1, max_length=80)]
Password = Annotated[SecretStr, Field(min_length=10, max_length=200)]

AppStatus = Literal["created", "building", "deploying", "running", "stopped", "suspended", "failed"]
DeploymentStatus = Literal["queued", "building", "deploying", "blocked", "running", "failed", "superseded"]


class Register(Strict):
    email: Email
    password: Password
    organization: Title


class LogIn(Strict):
    email: Email
    password: SecretStr


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


class CreateOrganization(Strict):
    name: Title


class GrantCredit(Strict):
    """`amount` in currency units with up to six decimals, as text: "25.00"."""

    amount: Annotated[str, StringConstraints(pattern=r"^\d{1,9}(\.\d{1,6})?$")]
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


class PlanView(Model):
    name: str
    title: str
    limits: Limits
    max_replicas: int
    hourly: Money
    monthly: Money


class RuntimeView(Model):
    name: str
    type: str
    version: str


class RegionView(Model):
    name: str
    base_domain: str


class ChooseGit(Strict):
    kind: Literal["git"] = "git"
    url: Annotated[str, StringConstraints(min_length=1, max_length=2000)]
    ref: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}$")] | None = None


class ChooseBuild(Strict):
    dockerfile: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}$")] = (
        "Dockerfile"
    )
    runtime: Annotated[str, StringConstraints(max_length=80)] | None = None
    start_command: Annotated[str, StringConstraints(max_length=2000)] | None = None

    def settings(self) -> BuildSettings:
        return BuildSettings(**self.model_dump())


class ChooseHealth(Strict):
    kind: Literal["tcp", "http"] = "tcp"
    path: Annotated[str, StringConstraints(pattern=r"^/[!-~]{0,500}$")] = "/"
    interval_seconds: Annotated[float, Field(gt=0, le=300)] = 10
    timeout_seconds: Annotated[float, Field(gt=0, le=60)] = 5
    retries: Annotated[int, Field(ge=1, le=20)] = 3
    start_seconds: Annotated[float, Field(gt=0, le=600)] = 60

    def check(self) -> HealthCheck:
        return HealthCheck(**self.model_dump())


class CreateApp(Strict):
    name: Name
    plan: Annotated[str, StringConstraints(max_length=80)]
    region: Annotated[str, StringConstraints(max_length=80)] | None = None
    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    port: Port = 8080
    health: ChooseHealth = ChooseHealth()
    git: ChooseGit | None = None
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


class AppList(Model):
    apps: tuple[AppView, ...]
    next: str | None


class Deploy(Strict):
    """Nothing chosen: the app's Git repository, else the source uploaded last."""

    git: ChooseGit | None = None


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
    exit_code: int | None
    failed_step: str | None
    seconds: float | None
    created_at: Moment
    finished_at: Moment | None


class DeploymentList(Model):
    deployments: tuple[DeploymentView, ...]
    next: str | None


class UsageLine(Model):
    app: AppId
    name: str | None
    seconds: int
    amount: Money


class UsageView(Model):
    currency: Currency
    total: Money
    lines: tuple[UsageLine, ...]
