"""health"""

revision = "scheduler_0003"
down_revision = "scheduler_0002"


def upgrade() -> None:
    pass
