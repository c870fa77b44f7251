"""log"""

revision = "builder_0003"
down_revision = "builder_0002"


def upgrade() -> None:
    pass
