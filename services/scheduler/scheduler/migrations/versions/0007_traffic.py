"""How many requests each workload got, node by node."""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0007"
down_revision = "scheduler_0006"


def upgrade() -> None:
    numbers = [
        sa.Column(f"{prefix}{name}", sa.BigInteger if name != "seconds" else sa.Float, nullable=False)
        for prefix in ("", "all_")
        for name in ("requests", "failed", "slow", "seconds")
    ]
    op.create_table(
        "traffic",
        sa.Column("workload", sa.Text, primary_key=True),
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("boot", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        *numbers,
        sa.Column("late_requests", sa.BigInteger, nullable=False),
        sa.Column("late_seconds", sa.Float, nullable=False),
        sa.Column("late_span", sa.Float, nullable=False),
    )
