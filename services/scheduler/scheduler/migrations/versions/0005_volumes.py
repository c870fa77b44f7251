"""volumes"""

revision = "scheduler_0005"
down_revision = "scheduler_0004"


def upgrade() -> None:
    pass
