"""scaling"""

revision = "scheduler_0006"
down_revision = "scheduler_0005"


def upgrade() -> None:
    pass
