"""queue"""

revision = "builder_0002"
down_revision = "builder_0001"


def upgrade() -> None:
    pass
