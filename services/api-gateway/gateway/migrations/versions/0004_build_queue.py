"""workload.cache, switch, allowance"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant

revision = "gateway_0004"
down_revision = "gateway_0003"


def upgrade() -> None:
    op.add_column("workload", sa.Column("cache", sa.Integer, nullable=False, server_default="0"))
    op.create_table(
        "switch",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("active", sa.Boolean, nullable=False),
    )
    op.create_table(
        "allowance",
        sa.Column("organization", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("whole_at", sa.DateTime(timezone=True), nullable=False),
    )
    tenant(op, "allowance")
