"""node, workload, placement, projection"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant
from sqlalchemy.dialects.postgresql import JSONB

revision = "scheduler_0001"
down_revision = None


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _number(name: str, default: str | None = None) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=default and sa.text(default))


def upgrade() -> None:
    op.create_table(
        "node",
        sa.Column("name", sa.Text, primary_key=True),
        _text("region"),
        _text("status"),
        _text("engine"),
        _number("instances"),
        _text("boot"),
        _number("sequence"),
        _moment("reported_at"),
        _moment("last_seen_at"),
        _number("cpu_millis"),
        _number("memory_mb"),
        _number("disk_mb"),
        _number("used_cpu_millis"),
        _number("used_memory_mb"),
        _number("used_disk_mb"),
        sa.Column("load", sa.Float, nullable=False),
        _number("reserved_cpu_millis", "0"),
        _number("reserved_memory_mb", "0"),
        _number("reserved_disk_mb", "0"),
        _number("free_cpu_millis"),
        _number("free_memory_mb"),
        _number("free_disk_mb"),
        _number("returned", "1"),
        sa.CheckConstraint("status in ('online', 'offline')", name="node_status_check"),
        sa.CheckConstraint("free_cpu_millis >= 0 and reserved_cpu_millis >= 0", name="node_cpu_check"),
        sa.CheckConstraint("free_memory_mb >= 0 and reserved_memory_mb >= 0", name="node_memory_check"),
        sa.CheckConstraint("free_disk_mb >= 0 and reserved_disk_mb >= 0", name="node_disk_check"),
    )
    op.create_index("node_region", "node", ["region"])
    # Every heartbeat and every placement updates a row: room on its page makes that cheap.
    op.execute("alter table node set (fillfactor = 50)")
    op.create_table(
        "workload",
        sa.Column("id", sa.Text, primary_key=True),
        _text("organization"),
        _text("region"),
        _number("generation"),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("in_force", JSONB),
        _number("revision", "0"),
        _moment("due_at", nullable=True),
        _number("failures", "0"),
        sa.Column("blocked", JSONB),
        sa.Column("blocked_returned", sa.BigInteger),
        _number("told_generation", "0"),
    )
    op.create_index("workload_due_at", "workload", ["due_at"], postgresql_where=sa.text("due_at is not null"))
    op.create_index(
        "workload_blocked", "workload", ["region"], postgresql_where=sa.text("blocked is not null")
    )
    tenant(op, "workload")
    op.create_table(
        "placement",
        sa.Column("workload", sa.Text, sa.ForeignKey("workload.id"), primary_key=True),
        sa.Column("process", sa.Text, primary_key=True),
        sa.Column("index", sa.BigInteger, primary_key=True),
        sa.Column("node", sa.Text, sa.ForeignKey("node.name"), primary_key=True),
        _number("cpu_millis"),
        _number("memory_mb"),
        _number("disk_mb"),
        sa.Column("leaving", sa.BigInteger),
    )
    op.create_index(
        "placement_slot",
        "placement",
        ["workload", "process", "index"],
        unique=True,
        postgresql_where=sa.text("leaving is null"),
    )
    op.create_index(
        "placement_leaving", "placement", ["node"], postgresql_where=sa.text("leaving is not null")
    )
    op.create_table(
        "projection",
        sa.Column("node", sa.Text, sa.ForeignKey("node.name"), primary_key=True),
        sa.Column("workload", sa.Text, sa.ForeignKey("workload.id"), primary_key=True),
        _number("slots"),
        _number("revision"),
        _number("written", "0"),
        _moment("written_at", nullable=True),
        sa.Column("vacant", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index("projection_workload", "projection", ["workload"])
    op.create_index(
        "projection_unwritten", "projection", ["node"], postgresql_where=sa.text("written < revision")
    )
    op.create_index("projection_empty", "projection", ["node"], postgresql_where=sa.text("slots = 0"))
