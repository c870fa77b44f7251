"""Questions to the builder: logs, the queue, and images."""

from typing import Annotated, Literal

from pydantic import Field

from contracts.ids import AppId, BuildId, DeploymentId, OrganizationId
from contracts.model import Model, Moment
from contracts.question import Query
from contracts.reports import LogLine


class BuildLogPage(Model):
    lines: tuple[LogLine, ...]
    # Nothing will be added any more.
    finished: bool


class BuildLogAfter(Query[BuildLogPage]):
    owner, what, answer = "builder", "log", BuildLogPage
    deployment: DeploymentId
    after: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=2000)] = 1000


class OpenBuild(Model):
    build: BuildId
    deployment: DeploymentId
    workload: AppId
    organization: OrganizationId
    app_name: str | None
    state: Literal["queued", "building"]
    # 1 is the next to be begun; None while it is under way.
    position: int | None
    attempts: int
    queued_at: Moment
    started_at: Moment | None


class BuildQueue(Model):
    """Those under way first, then those that wait, in the order in which they will be begun."""

    builds: tuple[OpenBuild, ...]
    running: int
    waiting: int


class BuildsOpen(Query[BuildQueue]):
    owner, what, answer = "builder", "open", BuildQueue
    # Only this deployment's, with its place among all.
    deployment: DeploymentId | None = None
    offset: Annotated[int, Field(ge=0)] = 0
    limit: Annotated[int, Field(ge=1, le=500)] = 100


class ImageExistence(Model):
    # None: neither the engine has it, nor does a registry answer.
    exists: bool | None


class ImageLookup(Query[ImageExistence]):
    """Whether an image can be had under a name."""

    owner, what, answer = "builder", "image", ImageExistence
    reference: str
