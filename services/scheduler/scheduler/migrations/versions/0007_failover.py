"""failover"""

revision = "scheduler_0007"
down_revision = "scheduler_0006"


def upgrade() -> None:
    pass
