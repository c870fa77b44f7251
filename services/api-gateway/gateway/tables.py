"""What every customer wants, and what the operator sells; who they are, `identity_tables` says.

Every table with a column `organization` is under row-level security: a customer's request sees the rows of
its organization and no others. `user`, `organization`, `plan` and `runtime` belong to the platform.
"""

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Identity,
    Index,
    LargeBinary,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from gateway.identity_tables import Base, Json, created

# --- what the operator sells -----------------------------------------------------------------------------


class PlanRow(Base):
    __tablename__ = "plan"
    name: Mapped[str] = mapped_column(primary_key=True)
    title: Mapped[str]
    limits: Mapped[Json]
    max_replicas: Mapped[int]
    micros_per_hour: Mapped[int] = mapped_column(BigInteger)
    micros_per_month: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    runtimes: Mapped[list[str] | None]
    volume_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("10240"))
    copy_minutes: Mapped[int | None]
    autoscaling: Mapped[bool] = mapped_column(server_default=false())
    sleeping: Mapped[bool] = mapped_column(server_default=false())
    # What it asks of a node besides room.
    needs: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    active: Mapped[bool] = mapped_column(server_default=true())


class RuntimeRow(Base):
    __tablename__ = "runtime"
    name: Mapped[str] = mapped_column(primary_key=True)
    type: Mapped[str]
    version: Mapped[str]
    image: Mapped[str]
    build_image: Mapped[str | None]
    install_command: Mapped[str | None]
    build_command: Mapped[str | None]
    start_command: Mapped[str | None]
    active: Mapped[bool] = mapped_column(server_default=true())


# --- what a customer wants ---------------------------------------------------------------------------------


class SwitchRow(Base):
    """What the administrator has turned on or off; what has no row is on."""

    __tablename__ = "switch"
    name: Mapped[str] = mapped_column(primary_key=True)
    active: Mapped[bool]


class AllowanceRow(Base):
    """When an organization will have the whole of an hourly allowance again."""

    __tablename__ = "allowance"
    organization: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    whole_at: Mapped[datetime]


class WorkloadRow(Base):
    """Intent, and beside it what the platform's events have said about it so far."""

    __tablename__ = "workload"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str] = mapped_column(ForeignKey("organization.id"))
    project: Mapped[str] = mapped_column(ForeignKey("project.id"))
    name: Mapped[str]
    environment: Mapped[str]
    generation: Mapped[int]
    state: Mapped[str]
    # Stopped for want of money, not by the customer.
    suspended: Mapped[bool] = mapped_column(server_default=false())
    region: Mapped[str]
    plan: Mapped[str]
    limits: Mapped[Json]
    micros_per_hour: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    uid: Mapped[int] = mapped_column(BigInteger)
    processes: Mapped[Json]
    replicas: Mapped[int]
    # Process -> how many of it are wanted, also of those that only another release has.
    chosen: Mapped[dict[str, int]] = mapped_column(JSONB, server_default=text("'{}'"))
    chosen_port: Mapped[int | None]
    port: Mapped[int]
    health: Mapped[Json]
    # Where it comes from, when that is not what is uploaded.
    source: Mapped[Json | None]
    build: Mapped[Json]
    restarts: Mapped[int] = mapped_column(server_default="0")
    # Sealed: all of them, and those of the instances. The digest is the same for the same of the latter.
    variables: Mapped[str | None]
    runtime_variables: Mapped[str | None]
    variables_digest: Mapped[str | None]
    # Which build cache is the app's: raised, the next build begins with an empty one.
    cache: Mapped[int] = mapped_column(server_default="0")
    # How many deployments there have been: the number of the newest.
    deployments: Mapped[int] = mapped_column(server_default="0")
    image: Mapped[str | None]
    release: Mapped[str | None]
    deployment: Mapped[str | None]

    # The newest release that was seen to come to life: where a failed rollout goes back to.
    good_release: Mapped[str | None]
    live: Mapped[bool] = mapped_column(server_default=false())
    volumes: Mapped[list[Json]] = mapped_column(server_default=text("'[]'"))
    # Of its plan, like the limits.
    needs: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    copy_minutes: Mapped[int | None]
    autoscale: Mapped[Json | None]
    above_since: Mapped[datetime | None]
    below_since: Mapped[datetime | None]
    scaled_at: Mapped[datetime | None]
    sleep_minutes: Mapped[float | None]
    naps: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    # What was heard about this very generation, and nothing older.
    placement: Mapped[Json | None]
    blockage: Mapped[Json | None]
    rollouts: Mapped[Json] = mapped_column(server_default=text("'{}'"))
    url: Mapped[str | None]
    url_at: Mapped[datetime | None]
    status: Mapped[str]
    reason: Mapped[str | None]
    # What its instances suffer from just now, and until when that is the newest known.
    trouble: Mapped[str | None]
    trouble_until: Mapped[datetime | None]
    # None of its nodes says that an instance answers.
    silent: Mapped[bool] = mapped_column(server_default=false())
    # Since when nothing of it answers that should, and whether the administrator knows.
    down_since: Mapped[datetime | None]
    down_told: Mapped[bool] = mapped_column(server_default=false())
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        Index("workload_organization", "organization", "id"),
        Index("workload_autoscale", "id", postgresql_where=text("autoscale is not null")),
        Index(
            "workload_down", "down_since", postgresql_where=text("down_since is not null and not down_told")
        ),
        # The hostname is made of the two, so they are one customer's on the whole platform.
        Index(
            "workload_name_key",
            "name",
            "environment",
            unique=True,
            postgresql_where=text("state <> 'deleted'"),
        ),
    )


class ActivityRow(Base):
    """What happened to an app that nobody asked for."""

    __tablename__ = "activity"
    # In the order of arrival.
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    # That of the event it was learned from.
    id: Mapped[str] = mapped_column(unique=True)
    organization: Mapped[str]
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id"))
    kind: Mapped[str]
    process: Mapped[str]
    words: Mapped[str]
    at: Mapped[datetime]
    __table_args__ = (Index("activity_workload", "workload", "number"),)


class ReleaseRow(Base):
    __tablename__ = "release"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id"), index=True)
    deployment: Mapped[str] = mapped_column(unique=True)
    image: Mapped[str]
    digest: Mapped[str]
    # Process -> command; no command means the image's own.
    processes: Mapped[Json]
    port: Mapped[int | None]
    # It was seen to come to life.
    lived: Mapped[bool] = mapped_column(server_default=false())


class DeploymentRow(Base):
    __tablename__ = "deployment"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id"))
    number: Mapped[int]
    status: Mapped[str]
    reason: Mapped[str | None]
    source: Mapped[Json]
    build: Mapped[Json]
    # The deployment that was built, where this one brings it back.
    rollback_of: Mapped[str | None]
    # How many lines the log of its build has: those of its release phase follow.
    build_lines: Mapped[int] = mapped_column(server_default="0")
    # What its customer should know about it, beside how it went.
    notes: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    recipe: Mapped[str | None]
    image: Mapped[str | None]
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    commit: Mapped[str | None]
    commit_author: Mapped[str | None]
    commit_message: Mapped[str | None]
    exit_code: Mapped[int | None]
    failed_step: Mapped[str | None]
    seconds: Mapped[float | None]
    log_tail: Mapped[list[str]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[datetime] = created()
    # When it came into its present status, and when the rest of the platform was last told of it.
    status_at: Mapped[datetime] = created()
    told_at: Mapped[datetime] = created()
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        UniqueConstraint("workload", "number"),
        Index(
            "deployment_pending",
            "status",
            "told_at",
            postgresql_where=text("status in ('queued', 'building', 'deploying')"),
        ),
    )


class SourceRow(Base):
    __tablename__ = "source"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id"), index=True)
    sha256: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    parts: Mapped[int]


class SourcePartRow(Base):
    __tablename__ = "source_part"
    source: Mapped[str] = mapped_column(ForeignKey("source.id", ondelete="cascade"), primary_key=True)
    index: Mapped[int] = mapped_column(primary_key=True)
    organization: Mapped[str]
    data: Mapped[bytes] = mapped_column(LargeBinary)


# --- one-off work ------------------------------------------------------------------------------------------


class CronRow(Base):
    """A command an app runs by a schedule. `next_at` is the next moment it is due, whoever was away."""

    __tablename__ = "cron"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id"))
    name: Mapped[str]
    schedule: Mapped[str]
    command: Mapped[str]
    timeout_seconds: Mapped[float]
    overlap: Mapped[bool]
    active: Mapped[bool] = mapped_column(server_default=true())
    next_at: Mapped[datetime]
    created_at: Mapped[datetime] = created()
    __table_args__ = (
        UniqueConstraint("workload", "name"),
        Index("cron_due", "next_at", postgresql_where=text("active")),
    )


class JobRow(Base):
    __tablename__ = "job"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id"))
    kind: Mapped[str]
    # Of a release phase, of which an app's deployment has one; of a schedule.
    deployment: Mapped[str | None] = mapped_column(unique=True)
    cron: Mapped[str | None]
    # The job as the rest of the platform is told it; nothing once that is over.
    body: Mapped[Json]
    command: Mapped[str]
    attached: Mapped[bool] = mapped_column(server_default=false())
    status: Mapped[str]
    reason: Mapped[str | None]
    # The only one whose word on it counts.
    node: Mapped[str | None]
    exit_code: Mapped[int | None]
    seconds: Mapped[float | None]
    created_at: Mapped[datetime] = created()
    told_at: Mapped[datetime] = created()
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        Index("job_workload", "workload", "id"),
        Index("job_cron", "cron", postgresql_where=text("cron is not null")),
        Index("job_open", "told_at", postgresql_where=text("status in ('queued', 'running')")),
    )


class JobLineRow(Base):
    __tablename__ = "job_line"
    job: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="cascade"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True)
    organization: Mapped[str]
    at: Mapped[datetime]
    stream: Mapped[str]
    text: Mapped[str]


class TicketRow(Base):
    """Opens one session, once. Only the digest of its secret is kept."""

    __tablename__ = "ticket"
    digest: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    user_id: Mapped[str]
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id", ondelete="cascade"))
    verb: Mapped[str]
    # What is talked to, and how.
    target: Mapped[Json]
    expires_at: Mapped[datetime]
    __table_args__ = (Index("ticket_expires_at", "expires_at"),)


class CredentialRow(Base):
    """`sealed` opens for the builder; `shown` is what may be seen of it."""

    __tablename__ = "credential"
    workload: Mapped[str] = mapped_column(ForeignKey("workload.id"), primary_key=True)
    purpose: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str]
    sealed: Mapped[str]
    shown: Mapped[Json]
    made_at: Mapped[datetime]


# --- money, and the platform about itself ----------------------------------------------------------------


class CreditRow(Base):
    __tablename__ = "credit"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str] = mapped_column(ForeignKey("organization.id"))
    micros: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]
    note: Mapped[str]
    by: Mapped[str]
    # What the client called this grant, so that asking twice grants once.
    key: Mapped[str | None]
    # Billing has said so: from then on the wallet has it.
    booked: Mapped[bool] = mapped_column(server_default=false())
    created_at: Mapped[datetime] = created()
    __table_args__ = (UniqueConstraint("organization", "key"),)


class WalletRow(Base):
    """The balance as billing last said it: the highest sequence wins."""

    __tablename__ = "wallet"
    organization: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    micros: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str]


class AlertRow(Base):
    __tablename__ = "alert"
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    id: Mapped[str] = mapped_column(unique=True)
    service: Mapped[str]
    severity: Mapped[str]
    title: Mapped[str]
    details: Mapped[Json]
    at: Mapped[datetime] = mapped_column(index=True)
    about: Mapped[str | None]
    over_at: Mapped[datetime | None]
    __table_args__ = (Index("alert_standing", "about", postgresql_where=text("over_at is null")),)


def violated(error: IntegrityError) -> str | None:
    """The constraint that refused a row."""
    diagnosis = getattr(error.orig, "diag", None)
    return None if diagnosis is None else diagnosis.constraint_name


# --- what instances and nodes say --------------------------------------------------------------------------
# A subject is a workload, or a node: that has no organization, and only the platform sees it.


class LineSourceRow(Base):
    """How far what one instance says has come."""

    __tablename__ = "line_source"
    node: Mapped[str] = mapped_column(primary_key=True)
    instance: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str]
    organization: Mapped[str | None]
    # In nanoseconds since 1970, and what it was before the last piece.
    kept: Mapped[int] = mapped_column(BigInteger)
    was: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime] = created()
    __table_args__ = (Index("line_source_at", "at"),)


class LineHeadRow(Base):
    __tablename__ = "line_head"
    subject: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str | None]
    # The sequence of its newest line; it counts on, whatever is forgotten.
    last: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)


class PieceRow(Base):
    """Lines of one instance, packed; `first` is the sequence of the first of them within the subject."""

    __tablename__ = "piece"
    subject: Mapped[str] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    organization: Mapped[str | None]
    instance: Mapped[str]
    process: Mapped[str]
    lines: Mapped[int]
    last_at: Mapped[datetime]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    __table_args__ = (Index("piece_last_at", "last_at"),)
