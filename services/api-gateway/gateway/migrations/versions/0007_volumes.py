"""Volumes of an app, and how large a plan lets them be."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0007"
down_revision = "gateway_0006"


def upgrade() -> None:
    op.add_column("workload", sa.Column("volumes", JSONB, nullable=False, server_default="[]"))
    op.add_column("plan", sa.Column("volume_mb", sa.BigInteger, nullable=False, server_default="10240"))
