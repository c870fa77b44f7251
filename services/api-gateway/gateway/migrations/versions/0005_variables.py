"""Variables of an app, sealed: all of them, those of its instances, and a digest of these."""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0005"
down_revision = "gateway_0004"


def upgrade() -> None:
    for name in ("variables", "runtime_variables", "variables_digest"):
        op.add_column("workload", sa.Column(name, sa.Text))
