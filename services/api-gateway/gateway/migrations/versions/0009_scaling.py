"""scaling"""

revision = "gateway_0009"
down_revision = "gateway_0008"


def upgrade() -> None:
    pass
