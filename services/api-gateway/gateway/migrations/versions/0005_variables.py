"""variables"""

revision = "gateway_0005"
down_revision = "gateway_0004"


def upgrade() -> None:
    pass
