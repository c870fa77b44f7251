"""Since when an app is down, and whether its administrator was told."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0012"
down_revision = "gateway_0011"


def upgrade() -> None:
    op.add_column("workload", sa.Column("down_since", sa.DateTime(timezone=True)))
    op.add_column("workload", sa.Column("down_told", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index(
        "workload_down",
        "workload",
        ["down_since"],
        postgresql_where=sa.text("down_since is not null and not down_told"),
    )
