"""workload, hostname"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant

revision = "domains_0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "workload",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
    )
    tenant(op, "workload")
    op.create_table(
        "hostname",
        sa.Column("hostname", sa.Text, primary_key=True),
        sa.Column("workload", sa.Text, nullable=False),
        sa.Column("organization", sa.Text, nullable=False),
        sa.Column("url", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("written", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("released_at", sa.DateTime(timezone=True)),
    )
    op.create_index(
        "hostname_workload", "hostname", ["workload"], postgresql_where=sa.text("released_at is null")
    )
    op.create_index(
        "hostname_unwritten", "hostname", ["hostname"], postgresql_where=sa.text("written < revision")
    )
    tenant(op, "hostname")
