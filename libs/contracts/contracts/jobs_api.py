"""The API's models of one-off work, of terminals, and of what happens to instances by itself."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from contracts.api import Name
from contracts.ids import AppId, DeploymentId, JobId
from contracts.jobs import JobKind, JobLine, JobOutcome
from contracts.model import Model, Moment, Strict
from contracts.shapes import shaped

JobStatus = Literal["queued", "running"] | JobOutcome
Schedule = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class ActivityView(Model):
    id: str
    # moved: its node went offline, or was emptied. restored: it goes on from a copy of its volumes.
    # failed: it does not start where it was placed. recovered: after that, it does.
    kind: Literal["crashed", "restarted", "lost", "moved", "restored", "failed", "recovered", "slept", "woke"]
    # The instance's place, such as web.1; empty when it happened to the app.
    process: str
    words: str
    at: Moment


class ActivityList(Model):
    activity: tuple[ActivityView, ...]
    next: str | None


class RunCommand(Strict):
    """In a new container of the app's image, with its environment and its plan's limits. It is not routed,
    and costs what an instance costs for as long as it runs."""

    # In a shell inside the container.
    command: Annotated[str, StringConstraints(min_length=1, max_length=4000)]
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 3600
    # A terminal to talk to it, by the ticket in the answer.
    attached: bool = False


class Execute(Strict):
    """A process inside a running instance, such as `web.1`; none named: the first of `web`."""

    instance: Annotated[
        str, shaped(r"^[a-z0-9][a-z0-9_-]{0,79}\.[1-9]\d{0,2}$", "an instance such as web.1")
    ] = "web.1"
    # A program and its arguments; no shell reads them unless it is one.
    command: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=4000)], ...],
        Field(min_length=1, max_length=100),
    ] = ("/bin/sh",)
    terminal: bool = True


class JobView(Model):
    id: JobId
    app: AppId
    kind: JobKind
    command: str
    status: JobStatus
    reason: str | None
    deployment: DeploymentId | None
    # The name of the schedule it was begun by.
    schedule: str | None
    exit_code: int | None
    seconds: float | None
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


class TicketView(Model):
    """Opens the WebSocket at `path` once, until it expires. Binary frames, a letter and what it carries: to
    the process `i` input, `z` size (rows and columns, two bytes each), `e` end of input; from it `o` output,
    `r` errors, `x` its end as JSON."""

    ticket: str
    path: str
    expires_at: Moment


class AttachedJob(Model):
    job: JobView
    ticket: TicketView


class JobList(Model):
    jobs: tuple[JobView, ...]
    next: str | None


class JobLogPage(Model):
    """`next` is the `after` of the page that follows; there is always one, until `finished`."""

    lines: tuple[JobLine, ...]
    finished: bool
    next: int


class CreateCron(Strict):
    """`schedule`: minute, hour, day of the month, month, day of the week, in UTC, as cron has them."""

    name: Name
    schedule: Schedule
    command: Annotated[str, StringConstraints(min_length=1, max_length=4000)]
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] = 3600
    # Begin a run while the one before it has not ended.
    overlap: bool = False


class ChangeCron(Strict):
    """What is absent stays."""

    schedule: Schedule | None = None
    command: Annotated[str, StringConstraints(min_length=1, max_length=4000)] | None = None
    timeout_seconds: Annotated[float, Field(gt=0, le=86_400)] | None = None
    overlap: bool | None = None
    active: bool | None = None


class CronView(Model):
    name: str
    app: AppId
    schedule: str
    command: str
    timeout_seconds: float
    overlap: bool
    active: bool
    next_at: Moment | None
    # How the newest run went.
    last: JobStatus | None
    created_at: Moment


class CronList(Model):
    crons: tuple[CronView, ...]
