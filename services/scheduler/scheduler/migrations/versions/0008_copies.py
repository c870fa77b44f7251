"""copies of volumes, what is on its way, and how often a workload's data has changed its home"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "scheduler_0008"
down_revision = "scheduler_0007"


def upgrade() -> None:
    for name in ("home", "proven"):
        op.add_column("workload", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("workload", sa.Column("claim", JSONB))
    op.add_column("workload", sa.Column("origins", JSONB, nullable=False, server_default="{}"))
    op.add_column("workload", sa.Column("moving", sa.Boolean, nullable=False, server_default=sa.false()))
    for name in ("homed_at", "copy_after"):
        op.add_column("workload", sa.Column(name, sa.DateTime(timezone=True)))
    op.create_index("workload_bound", "workload", ["bound"], postgresql_where=sa.text("bound is not null"))
    op.create_table(
        "copy",
        sa.Column("workload", sa.Text, sa.ForeignKey("workload.id"), primary_key=True),
        sa.Column("node", sa.Text, sa.ForeignKey("node.name", ondelete="cascade"), primary_key=True),
        sa.Column("id", sa.Text),
        sa.Column("taken_at", sa.DateTime(timezone=True)),
        sa.Column("digest", sa.Text),
        sa.Column("volumes", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'")),
        sa.Column("disk_mb", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("dropping", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.create_index("copy_node", "copy", ["node"])
    op.create_table(
        "transfer",
        sa.Column("workload", sa.Text, sa.ForeignKey("workload.id"), primary_key=True),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("secret", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("target", sa.Text, sa.ForeignKey("node.name", ondelete="cascade"), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done_mb", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("total_mb", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("sent_mb", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("words", sa.Text),
        sa.Column("cpu_millis", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("memory_mb", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("disk_mb", sa.BigInteger, nullable=False, server_default="0"),
        sa.CheckConstraint("why in ('copy', 'move')", name=op.f("transfer_why_check")),
        sa.CheckConstraint("mode in ('frozen', 'final')", name=op.f("transfer_mode_check")),
    )
    op.create_index("transfer_target", "transfer", ["target"])
