"""when billing said its last word is asked by nobody"""

from alembic import op

revision = "gateway_0017"
down_revision = "gateway_0016"


def upgrade() -> None:
    op.drop_column("wallet", "said_at")
