"""recipes"""

revision = "builder_0005"
down_revision = "builder_0004"


def upgrade() -> None:
    pass
