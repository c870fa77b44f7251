"""jobs"""

revision = "gateway_0006"
down_revision = "gateway_0005"


def upgrade() -> None:
    pass
