"""Deployments that bring an earlier one back, and releases that were seen to come to life."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0011"
down_revision = "gateway_0010"


def upgrade() -> None:
    op.add_column("deployment", sa.Column("rollback_of", sa.Text))
    op.add_column("release", sa.Column("lived", sa.Boolean, nullable=False, server_default=sa.false()))
    op.execute("select set_config('berth.organization', '*', true)")
    op.execute(
        "update release set lived = true from deployment "
        "where deployment.id = release.deployment and deployment.status in ('running', 'superseded')"
    )
