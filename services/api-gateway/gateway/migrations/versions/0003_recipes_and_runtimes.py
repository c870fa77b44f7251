"""runtime.install_command"""

import sqlalchemy as sa
from alembic import op

revision = "gateway_0003"
down_revision = "gateway_0002"


def upgrade() -> None:
    op.add_column("runtime", sa.Column("install_command", sa.Text))
