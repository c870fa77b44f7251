"""copies that their nodes do not have any more"""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0009"
down_revision = "scheduler_0008"


def upgrade() -> None:
    op.add_column("copy", sa.Column("complete_at", sa.DateTime(timezone=True)))
    op.add_column("copy", sa.Column("missing", sa.Boolean, nullable=False, server_default=sa.false()))
