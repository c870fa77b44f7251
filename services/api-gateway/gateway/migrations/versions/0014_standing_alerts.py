"""What an alert is about, and since when it is over; whether anything of an app answers."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0014"
down_revision = "gateway_0013"


def upgrade() -> None:
    op.add_column("workload", sa.Column("silent", sa.Boolean, nullable=False, server_default=sa.false()))
    op.add_column("alert", sa.Column("about", sa.Text))
    op.add_column("alert", sa.Column("over_at", sa.DateTime(timezone=True)))
    op.create_index("alert_standing", "alert", ["about"], postgresql_where=sa.text("over_at is null"))
