"""Rules by which apps are scaled, the plans that allow them, and what plans ask of nodes."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0008"
down_revision = "gateway_0007"


def upgrade() -> None:
    op.add_column("plan", sa.Column("autoscaling", sa.Boolean, nullable=False, server_default=sa.false()))
    for table in ("plan", "workload"):
        op.add_column(table, sa.Column("needs", JSONB, nullable=False, server_default="{}"))
    op.add_column("workload", sa.Column("autoscale", JSONB))
    for name in ("above_since", "below_since", "scaled_at"):
        op.add_column("workload", sa.Column(name, sa.DateTime(timezone=True)))
    op.create_index(
        "workload_autoscale", "workload", ["id"], postgresql_where=sa.text("autoscale is not null")
    )
