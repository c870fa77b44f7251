"""sources"""

revision = "builder_0004"
down_revision = "builder_0003"


def upgrade() -> None:
    pass
