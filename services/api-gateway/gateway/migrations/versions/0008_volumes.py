"""volumes"""

revision = "gateway_0008"
down_revision = "gateway_0007"


def upgrade() -> None:
    pass
