"""credential, workload.source, and who made a deployment's commit"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0002"
down_revision = "0001"


def upgrade() -> None:
    op.alter_column("workload", "git", new_column_name="source")
    op.add_column("deployment", sa.Column("commit_author", sa.Text))
    op.add_column("deployment", sa.Column("commit_message", sa.Text))
    op.create_table(
        "credential",
        sa.Column("workload", sa.Text, sa.ForeignKey("workload.id"), primary_key=True),
        sa.Column("purpose", sa.Text, primary_key=True),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("sealed", sa.Text, nullable=False),
        sa.Column("shown", JSONB, nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
    )
    tenant(op, "credential")
