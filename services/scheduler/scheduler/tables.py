"""The scheduler's tables: nodes and what is reserved on them, workloads and where their slots are.

Invariant, kept by the database itself: what is free on a node is never negative, and a slot has one place.
"""

from datetime import datetime
from typing import Any

from runtime.tables import NAMING
from sqlalchemy import BigInteger, CheckConstraint, DateTime, Float, ForeignKey, Index, MetaData, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class NodeRow(Base):
    __tablename__ = "node"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    region: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    engine: Mapped[str] = mapped_column(Text)
    engine_away: Mapped[bool] = mapped_column(server_default=text("false"))
    instances: Mapped[int] = mapped_column(BigInteger)
    # The newest report heard, so that an older one that comes late changes nothing.
    boot: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int] = mapped_column(BigInteger)
    reported_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # By our own clock: a node whose clock is wrong is not silent.
    last_seen_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    cpu_millis: Mapped[int] = mapped_column(BigInteger)
    memory_mb: Mapped[int] = mapped_column(BigInteger)
    disk_mb: Mapped[int] = mapped_column(BigInteger)
    used_cpu_millis: Mapped[int] = mapped_column(BigInteger)
    used_memory_mb: Mapped[int] = mapped_column(BigInteger)
    used_disk_mb: Mapped[int] = mapped_column(BigInteger)
    load: Mapped[float] = mapped_column(Float)
    # The sum of the node's placements.
    reserved_cpu_millis: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    reserved_memory_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    reserved_disk_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Capacity less reservations, 0 where the machine shrank below what it had promised. A reservation is
    # taken from here, so the check refuses it, whatever the one who takes it believes.
    free_cpu_millis: Mapped[int] = mapped_column(BigInteger)
    free_memory_mb: Mapped[int] = mapped_column(BigInteger)
    free_disk_mb: Mapped[int] = mapped_column(BigInteger)
    # How often capacity has come back here: new, online again, grown, something left.
    returned: Mapped[int] = mapped_column(BigInteger, server_default=text("1"))
    # What the machine reports. `cpu_millis` and its like above are what is given away of it: as much as
    # the administrator lets be promised, and never beyond his limit.
    machine_cpu_millis: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    machine_memory_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    machine_disk_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    limit_cpu_millis: Mapped[int | None] = mapped_column(BigInteger)
    limit_memory_mb: Mapped[int | None] = mapped_column(BigInteger)
    limit_disk_mb: Mapped[int | None] = mapped_column(BigInteger)
    oversubscribe_cpu: Mapped[float] = mapped_column(Float, server_default=text("1"))
    oversubscribe_memory: Mapped[float] = mapped_column(Float, server_default=text("1"))
    # The share of the capacity that only work from a lost node may take.
    reserve: Mapped[float] = mapped_column(Float, server_default=text("0"))
    # Takes no new work; and gives away what it has.
    disabled: Mapped[bool] = mapped_column(server_default=text("false"))
    draining: Mapped[bool] = mapped_column(server_default=text("false"))
    # The slots it had when it began to give them away.
    drain_total: Mapped[int | None] = mapped_column(BigInteger)
    labels: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    agent: Mapped[str] = mapped_column(Text, server_default=text("''"))
    # Times it fell silent lately, and the last of them. One that comes back is given new work only from
    # `trusted_at` on, later each time; null: at once.
    outages: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    outage_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    trusted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # What its engine and its machine can run; null: it does not say.
    architecture: Mapped[str | None] = mapped_column(Text)
    runtimes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    # What runs here has to be looked at again: it fell silent, or is to be emptied.
    evacuate: Mapped[bool] = mapped_column(server_default=text("false"))
    # The resources an alert stands for.
    pressed: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    __table_args__ = (
        CheckConstraint("status in ('online', 'offline')", name="status"),
        CheckConstraint("free_cpu_millis >= 0 and reserved_cpu_millis >= 0", name="cpu"),
        CheckConstraint("free_memory_mb >= 0 and reserved_memory_mb >= 0", name="memory"),
        CheckConstraint("free_disk_mb >= 0 and reserved_disk_mb >= 0", name="disk"),
        CheckConstraint("reserve >= 0 and reserve <= 0.9", name="reserve"),
        CheckConstraint(
            "oversubscribe_cpu between 1 and 16 and oversubscribe_memory between 1 and 4",
            name="oversubscribe",
        ),
        Index("node_region", "region"),
        Index("node_evacuate", "name", postgresql_where=text("evacuate")),
    )


class NodeSampleRow(Base):
    __tablename__ = "node_sample"
    node: Mapped[str] = mapped_column(Text, ForeignKey("node.name", ondelete="cascade"), primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    used_cpu_millis: Mapped[int] = mapped_column(BigInteger)
    used_memory_mb: Mapped[int] = mapped_column(BigInteger)
    used_disk_mb: Mapped[int] = mapped_column(BigInteger)
    reserved_cpu_millis: Mapped[int] = mapped_column(BigInteger)
    reserved_memory_mb: Mapped[int] = mapped_column(BigInteger)
    reserved_disk_mb: Mapped[int] = mapped_column(BigInteger)
    load: Mapped[float] = mapped_column(Float)
    instances: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (Index("node_sample_at", "at"),)


class JoinTokenRow(Base):
    """A machine may join with it once. Only its digest is kept."""

    __tablename__ = "join_token"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(Text, unique=True)
    region: Mapped[str] = mapped_column(Text)
    # The name the machine has to take; none: it chooses.
    node: Mapped[str | None] = mapped_column(Text)
    labels: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    created_by: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # By whom it was used, and the digest of that machine's key: it may ask again when the answer was lost.
    used_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    used_by: Mapped[str | None] = mapped_column(Text)
    key_digest: Mapped[str | None] = mapped_column(Text)


class NodeKeyRow(Base):
    """A machine that has joined: what it logs in to the bus with, of which only the digest is kept. A removed
    one stays until its connections are known to be cut for the last time."""

    __tablename__ = "node_key"
    node: Mapped[str] = mapped_column(Text, primary_key=True)
    digest: Mapped[str] = mapped_column(Text)
    region: Mapped[str] = mapped_column(Text)
    labels: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    address: Mapped[str] = mapped_column(Text)
    # What it said of itself when it joined.
    machine: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    joined_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    removed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # When its connections were last ended, as a removed one.
    cut_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    __table_args__ = (
        Index("node_key_removed", "removed_at", postgresql_where=text("removed_at is not null")),
    )


class NodeUsageRow(Base):
    """What its instances use: workload -> instance -> process, index, CPU, memory; and the workloads that
    answer."""

    __tablename__ = "node_usage"
    node: Mapped[str] = mapped_column(Text, ForeignKey("node.name", ondelete="cascade"), primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    instances: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # Workload -> volume -> MB used, MB in all.
    volumes: Mapped[dict[str, Any]] = mapped_column(JSONB)
    answering: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))


class TrafficRow(Base):
    """Requests for a workload at the ingress of a node: as it counts them, in all, and between its last two
    reports."""

    __tablename__ = "traffic"
    workload: Mapped[str] = mapped_column(Text, primary_key=True)
    node: Mapped[str] = mapped_column(Text, primary_key=True)
    # The start of the ingress that its own numbers count from.
    boot: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    requests: Mapped[int] = mapped_column(BigInteger)
    failed: Mapped[int] = mapped_column(BigInteger)
    slow: Mapped[int] = mapped_column(BigInteger)
    seconds: Mapped[float]
    all_requests: Mapped[int] = mapped_column(BigInteger)
    all_failed: Mapped[int] = mapped_column(BigInteger)
    all_slow: Mapped[int] = mapped_column(BigInteger)
    all_seconds: Mapped[float]
    late_requests: Mapped[int] = mapped_column(BigInteger)
    late_seconds: Mapped[float]
    late_span: Mapped[float]


class WorkloadRow(Base):
    __tablename__ = "workload"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    organization: Mapped[str] = mapped_column(Text)
    region: Mapped[str] = mapped_column(Text)
    generation: Mapped[int] = mapped_column(BigInteger)
    # The newest specification heard. A deleted workload keeps its row: nothing older may revive it.
    spec: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # The one its nodes follow; lags behind while a change is held back for want of room.
    in_force: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    # Counts the changes of what the nodes are told.
    revision: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # When it is to be placed (again); null when nothing is to do.
    due_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # Times in a row its placing broke.
    failures: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # node -> why it does not take what is still to be placed, and the capacity that had ever returned to the
    # region by then: as soon as that differs, it is worth another look.
    blocked: Mapped[dict[str, str] | None] = mapped_column(JSONB)
    blocked_returned: Mapped[int | None] = mapped_column(BigInteger)
    # The node its volumes are on: it runs nowhere else.
    bound: Mapped[str | None] = mapped_column(Text)
    # The newest generation the others have been told the outcome of.
    told_generation: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # How often its volumes have gone to another node; the last of these that is known to run; and the copy
    # that is its data there.
    home: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    proven: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    claim: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    homed_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # Volume -> the node where it was made, of those that have gone elsewhere: its key is made of that one's.
    origins: Mapped[dict[str, str]] = mapped_column(JSONB, server_default=text("'{}'"))
    # Of its volumes those that its home has had: one that is missing there is lost, and not new.
    made: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    # Its instances have been told to end, and the last of its data is on its way: it is not placed meanwhile.
    moving: Mapped[bool] = mapped_column(server_default=text("false"))
    # No copy is begun before, because so many in a row have failed, or there was nowhere to.
    copy_after: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    copy_failures: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    __table_args__ = (
        Index("workload_due_at", "due_at", postgresql_where=text("due_at is not null")),
        Index("workload_blocked", "region", postgresql_where=text("blocked is not null")),
        Index("workload_bound", "bound", postgresql_where=text("bound is not null")),
    )


class PlacementRow(Base):
    __tablename__ = "placement"
    workload: Mapped[str] = mapped_column(Text, ForeignKey("workload.id"), primary_key=True)
    process: Mapped[str] = mapped_column(Text, primary_key=True)
    index: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    node: Mapped[str] = mapped_column(Text, ForeignKey("node.name"), primary_key=True)
    cpu_millis: Mapped[int] = mapped_column(BigInteger)
    memory_mb: Mapped[int] = mapped_column(BigInteger)
    disk_mb: Mapped[int] = mapped_column(BigInteger)
    # The revision that told the slot to leave. What it reserves stays reserved until nothing of it runs; and
    # of the last one at the workload's home, what its volumes take, as long as they are there.
    leaving: Mapped[int | None] = mapped_column(BigInteger)
    # The slot has another place: it leaves this one as soon as it runs on that node.
    relieved_by: Mapped[str | None] = mapped_column(Text)
    __table_args__ = (
        Index(
            "placement_slot",
            "workload",
            "process",
            "index",
            unique=True,
            postgresql_where=text("leaving is null and relieved_by is null"),
        ),
        Index(
            "placement_relieved",
            "relieved_by",
            postgresql_where=text("relieved_by is not null and leaving is null"),
        ),
        Index("placement_node", "node", postgresql_where=text("leaving is null")),
        Index("placement_leaving", "node", postgresql_where=text("leaving is not null")),
    )


class CopyRow(Base):
    """A copy of a workload's volumes on another node, or the room for one that has yet to come."""

    __tablename__ = "copy"
    workload: Mapped[str] = mapped_column(Text, ForeignKey("workload.id"), primary_key=True)
    node: Mapped[str] = mapped_column(Text, ForeignKey("node.name", ondelete="cascade"), primary_key=True)
    # Of the newest complete one; and the moment whose data it has.
    id: Mapped[str | None] = mapped_column(Text)
    taken_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    digest: Mapped[str | None] = mapped_column(Text)
    volumes: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    # Reserved for it there.
    disk_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Nobody wants it any more; the row goes when the node says that it is gone.
    dropping: Mapped[bool] = mapped_column(server_default=text("false"))
    # When the newest was complete; and that its node does not have it any more.
    complete_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    missing: Mapped[bool] = mapped_column(server_default=text("false"))
    __table_args__ = (Index("copy_node", "node"),)


class TransferRow(Base):
    """A copy on its way: one of a workload at a time."""

    __tablename__ = "transfer"
    workload: Mapped[str] = mapped_column(Text, ForeignKey("workload.id"), primary_key=True)
    id: Mapped[str] = mapped_column(Text)
    # Told to both ends and to nobody else; good for this copy.
    secret: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    target: Mapped[str] = mapped_column(Text, ForeignKey("node.name", ondelete="cascade"))
    why: Mapped[str] = mapped_column(Text)
    mode: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # What the target says, and when it last said something new.
    moved_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    done_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    total_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    sent_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    words: Mapped[str | None] = mapped_column(Text)
    # Since when it has had such words without a break.
    stuck_since: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # Of a move: reserved on the target for the instances that are to run there.
    cpu_millis: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    memory_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    disk_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    __table_args__ = (
        CheckConstraint("why in ('copy', 'move')", name="why"),
        CheckConstraint("mode in ('frozen', 'final')", name="mode"),
        Index("transfer_target", "target"),
    )


class ProjectionRow(Base):
    """What a node has to be told of a workload, and what is known to stand in the bucket."""

    __tablename__ = "projection"
    node: Mapped[str] = mapped_column(Text, ForeignKey("node.name"), primary_key=True)
    workload: Mapped[str] = mapped_column(Text, ForeignKey("workload.id"), primary_key=True)
    slots: Mapped[int] = mapped_column(BigInteger)
    revision: Mapped[int] = mapped_column(BigInteger)
    written: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    written_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # The node has been told to run nothing of it, and reports nothing of it.
    vacant: Mapped[bool] = mapped_column(server_default=text("false"))
    __table_args__ = (
        Index("projection_workload", "workload"),
        Index("projection_unwritten", "node", postgresql_where=text("written < revision")),
        Index("projection_empty", "node", postgresql_where=text("slots = 0")),
    )


class JobRow(Base):
    """One-off work, its room and its node. An ended one is kept for a while, to be told again."""

    __tablename__ = "job"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    organization: Mapped[str] = mapped_column(Text)
    workload: Mapped[str] = mapped_column(Text)
    region: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    # The job as it was asked for.
    body: Mapped[dict[str, Any]] = mapped_column(JSONB)
    state: Mapped[str] = mapped_column(Text)
    # Never another one: that would be a second begin.
    node: Mapped[str | None] = mapped_column(Text)
    cpu_millis: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    memory_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    disk_mb: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    # Of one that has its workload's volumes: the number of the data it is for, and the revision of the
    # workload that its node has to know first. Without volumes both are 0.
    home: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    revision: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    cancelled: Mapped[bool] = mapped_column(server_default=text("false"))
    start_before: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # When it has run for as long as it may.
    deadline: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # It stands in the bucket as it is here; and its key is gone again.
    written: Mapped[bool] = mapped_column(server_default=text("false"))
    removed: Mapped[bool] = mapped_column(server_default=text("false"))
    ending: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    ended_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    __table_args__ = (
        CheckConstraint("state in ('waiting', 'placed', 'ended')", name="state"),
        Index("job_open", "workload", postgresql_where=text("state <> 'ended'")),
        Index("job_unremoved", "id", postgresql_where=text("state = 'ended' and not removed")),
    )
