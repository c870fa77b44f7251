"""build, build_log, layer"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant

revision = "builder_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "build",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("deployment", sa.Text, nullable=False, unique=True),
        sa.Column("workload", sa.Text, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.Column("image", sa.Text),
        sa.Column("result", sa.Text),
        sa.Column("log_sequence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("log_bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("lease_holder", sa.Text),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
    )
    # The queue is the few rows of a large table that are not finished.
    op.create_index(
        "build_open", "build", ["queued_at"], postgresql_where=sa.text("state in ('queued', 'building')")
    )
    op.create_index("build_of_workload", "build", ["workload", "finished_at"])
    tenant(op, "build")
    op.create_table(
        "build_log",
        sa.Column("deployment", sa.Text, primary_key=True),
        sa.Column("first", sa.Integer, primary_key=True),
        sa.Column("last", sa.Integer, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("lines", sa.LargeBinary, nullable=False),
    )
    tenant(op, "build_log")
    op.create_table(
        "layer",
        sa.Column("engine", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=False),
    )
