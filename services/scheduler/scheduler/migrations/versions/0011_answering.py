"""The workloads that answer on a node."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "scheduler_0011"
down_revision = "scheduler_0010"


def upgrade() -> None:
    op.add_column(
        "node_usage", sa.Column("answering", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'"))
    )
