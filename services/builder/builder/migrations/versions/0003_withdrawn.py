"""build.withdrawn"""

import sqlalchemy as sa
from alembic import op

revision = "builder_0003"
down_revision = "builder_0002"


def upgrade() -> None:
    op.add_column("build", sa.Column("withdrawn", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index(
        "build_published",
        "build",
        ["finished_at"],
        postgresql_where=sa.text("state = 'succeeded' and not withdrawn"),
    )
