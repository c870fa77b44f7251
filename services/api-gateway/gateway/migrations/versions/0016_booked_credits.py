"""Whether billing has booked a credit; of those granted so far it has, or soon will"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0016"
down_revision = "gateway_0015"


def upgrade() -> None:
    op.add_column("credit", sa.Column("booked", sa.Boolean, nullable=False, server_default=sa.true()))
    op.alter_column("credit", "booked", server_default=sa.false())
