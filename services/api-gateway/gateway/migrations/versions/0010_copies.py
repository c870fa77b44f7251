"""Plans that have their apps' volumes copied to another node, and how often."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0010"
down_revision = "gateway_0009"


def upgrade() -> None:
    for table in ("plan", "workload"):
        op.add_column(table, sa.Column("copy_minutes", sa.Integer))
