"""which volumes of a workload have been made"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "scheduler_0012"
down_revision = "scheduler_0011"


def upgrade() -> None:
    op.add_column(
        "workload", sa.Column("made", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'"))
    )
