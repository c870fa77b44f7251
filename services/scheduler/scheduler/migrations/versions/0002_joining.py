"""joining"""

revision = "scheduler_0002"
down_revision = "scheduler_0001"


def upgrade() -> None:
    pass
