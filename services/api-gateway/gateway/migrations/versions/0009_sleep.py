"""Apps that sleep while nobody asks for them, and the plans that allow it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0009"
down_revision = "gateway_0008"


def upgrade() -> None:
    op.add_column("plan", sa.Column("sleeping", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("workload", sa.Column("sleep_minutes", sa.Float))
    op.add_column("workload", sa.Column("naps", JSONB, nullable=False, server_default="{}"))
