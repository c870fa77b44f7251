"""build queue"""

revision = "gateway_0004"
down_revision = "gateway_0003"


def upgrade() -> None:
    pass
