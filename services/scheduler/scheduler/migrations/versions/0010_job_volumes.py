"""jobs that have the volumes of their workload"""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0010"
down_revision = "scheduler_0009"


def upgrade() -> None:
    for name in ("home", "revision"):
        op.add_column("job", sa.Column(name, sa.BigInteger, nullable=False, server_default="0"))
