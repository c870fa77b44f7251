"""copies that do not get on leave their turn to others"""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0013"
down_revision = "scheduler_0012"


def upgrade() -> None:
    op.add_column("transfer", sa.Column("stuck_since", sa.DateTime(timezone=True)))
    op.add_column(
        "workload", sa.Column("copy_failures", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
