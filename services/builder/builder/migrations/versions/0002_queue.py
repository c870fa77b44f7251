"""build.number, build.preview, whose turn it is, layer.bytes"""

import sqlalchemy as sa
from alembic import op

revision = "builder_0002"
down_revision = "builder_0001"


def upgrade() -> None:
    op.add_column("build", sa.Column("number", sa.Integer, nullable=False, server_default="0"))
    op.add_column("build", sa.Column("preview", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("layer", sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("build_of_organization", "build", ["organization", "started_at"])
