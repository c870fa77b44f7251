"""Whether the container engine of a node answers."""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0016"
down_revision = "scheduler_0015"


def upgrade() -> None:
    op.add_column(
        "node", sa.Column("engine_away", sa.Boolean(), nullable=False, server_default=sa.text("false"))
    )
