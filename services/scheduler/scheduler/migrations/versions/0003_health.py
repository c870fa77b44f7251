"""what an administrator decides about a node, what its machine has, and how it fared"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "scheduler_0003"
down_revision = "scheduler_0002"

RESOURCES = ("cpu_millis", "memory_mb", "disk_mb")


def upgrade() -> None:
    columns: tuple[sa.Column[Any], ...] = (
        sa.Column("disabled", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("draining", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("drain_total", sa.BigInteger),
        sa.Column("labels", JSONB, nullable=False, server_default=sa.text("'{}'")),
        *(
            sa.Column(f"machine_{name}", sa.BigInteger, nullable=False, server_default=sa.text("0"))
            for name in RESOURCES
        ),
        *(sa.Column(f"limit_{name}", sa.BigInteger) for name in RESOURCES),
        sa.Column("oversubscribe_cpu", sa.Float, nullable=False, server_default=sa.text("1")),
        sa.Column("oversubscribe_memory", sa.Float, nullable=False, server_default=sa.text("1")),
        sa.Column("reserve", sa.Float, nullable=False, server_default=sa.text("0")),
        sa.Column("agent", sa.Text, nullable=False, server_default=sa.text("''")),
        sa.Column("outages", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("outage_at", sa.DateTime(timezone=True)),
        sa.Column("trusted_at", sa.DateTime(timezone=True)),
        sa.Column("pressed", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
    )
    for column in columns:
        op.add_column("node", column)
    op.execute(
        "update node set machine_cpu_millis = cpu_millis, machine_memory_mb = memory_mb,"
        " machine_disk_mb = disk_mb"
    )
    op.create_check_constraint("node_reserve_check", "node", "reserve >= 0 and reserve <= 0.9")
    op.create_check_constraint(
        "node_oversubscribe_check",
        "node",
        "oversubscribe_cpu between 1 and 16 and oversubscribe_memory between 1 and 4",
    )
    op.create_table(
        "node_sample",
        sa.Column("node", sa.Text, sa.ForeignKey("node.name", ondelete="cascade"), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), primary_key=True),
        *(sa.Column(f"used_{name}", sa.BigInteger, nullable=False) for name in RESOURCES),
        *(sa.Column(f"reserved_{name}", sa.BigInteger, nullable=False) for name in RESOURCES),
        sa.Column("load", sa.Float, nullable=False),
        sa.Column("instances", sa.BigInteger, nullable=False),
    )
    op.create_index("node_sample_at", "node_sample", ["at"])
