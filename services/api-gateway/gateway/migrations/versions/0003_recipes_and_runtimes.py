"""recipes and runtimes"""

revision = "gateway_0003"
down_revision = "gateway_0002"


def upgrade() -> None:
    pass
