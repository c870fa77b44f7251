"""what instances and nodes say, as it is kept"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant

revision = "gateway_0013"
down_revision = "gateway_0012"

MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "line_source",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("instance", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("organization", sa.Text),
        sa.Column("kept", sa.BigInteger, nullable=False),
        sa.Column("was", sa.BigInteger, nullable=False),
        sa.Column("at", MOMENT, nullable=False, server_default=sa.func.now()),
    )
    op.create_index("line_source_at", "line_source", ["at"])
    op.create_table(
        "line_head",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("organization", sa.Text),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "piece",
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("first", sa.BigInteger, primary_key=True),
        sa.Column("organization", sa.Text),
        sa.Column("instance", sa.Text, nullable=False),
        sa.Column("process", sa.Text, nullable=False),
        sa.Column("lines", sa.Integer, nullable=False),
        sa.Column("last_at", MOMENT, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_index("piece_last_at", "piece", ["last_at"])
    for table in ("line_source", "line_head", "piece"):
        tenant(op, table)
