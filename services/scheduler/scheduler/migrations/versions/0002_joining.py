"""the tokens a machine joins with, and the keys of the machines that have joined"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "scheduler_0002"
down_revision = "scheduler_0001"


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def upgrade() -> None:
    op.create_table(
        "join_token",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False, unique=True),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("node", sa.Text),
        sa.Column("labels", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("created_by", sa.Text, nullable=False),
        _moment("created_at"),
        _moment("expires_at"),
        _moment("revoked_at", nullable=True),
        _moment("used_at", nullable=True),
        sa.Column("used_by", sa.Text),
        sa.Column("key_digest", sa.Text),
    )
    op.create_table(
        "node_key",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("region", sa.Text, nullable=False),
        sa.Column("labels", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("machine", JSONB, nullable=False, server_default=sa.text("'{}'")),
        _moment("joined_at"),
        _moment("removed_at", nullable=True),
    )
    op.create_index(
        "node_key_removed", "node_key", ["removed_at"], postgresql_where=sa.text("removed_at is not null")
    )
