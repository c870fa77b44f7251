"""Rules by which apps are scaled, and the plans that allow them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0008"
down_revision = "gateway_0007"


def upgrade() -> None:
    op.add_column("plan", sa.Column("autoscaling", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("workload", sa.Column("autoscale", JSONB))
    for name in ("above_since", "below_since", "scaled_at"):
        op.add_column("workload", sa.Column(name, sa.DateTime(timezone=True)))
    op.create_index(
        "workload_autoscale", "workload", ["id"], postgresql_where=sa.text("autoscale is not null")
    )
