"""jobs"""

revision = "scheduler_0004"
down_revision = "scheduler_0003"


def upgrade() -> None:
    pass
