"""what the instances and volumes of a node use"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "scheduler_0005"
down_revision = "scheduler_0004"


def upgrade() -> None:
    op.create_table(
        "node_usage",
        sa.Column("node", sa.Text, sa.ForeignKey("node.name", ondelete="cascade"), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("instances", JSONB, nullable=False),
        sa.Column("volumes", JSONB, nullable=False),
    )
