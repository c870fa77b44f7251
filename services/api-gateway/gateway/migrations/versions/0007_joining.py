"""joining"""

revision = "gateway_0007"
down_revision = "gateway_0006"


def upgrade() -> None:
    pass
