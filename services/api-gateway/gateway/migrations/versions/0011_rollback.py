"""Deployments that bring an earlier one back."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0011"
down_revision = "gateway_0010"


def upgrade() -> None:
    op.add_column("deployment", sa.Column("rollback_of", sa.Text))
