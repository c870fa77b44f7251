"""When the connections of a removed node were last ended."""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0014"
down_revision = "scheduler_0013"


def upgrade() -> None:
    op.add_column("node_key", sa.Column("cut_at", sa.DateTime(timezone=True)))
