"""what a node can run, where a workload is bound to, and who takes over from whom"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "scheduler_0006"
down_revision = "scheduler_0005"


def upgrade() -> None:
    op.add_column("node", sa.Column("architecture", sa.Text))
    op.add_column(
        "node", sa.Column("runtimes", ARRAY(sa.Text), nullable=False, server_default=sa.text("'{}'"))
    )
    op.add_column("node", sa.Column("evacuate", sa.Boolean, nullable=False, server_default=sa.false()))
    op.create_index("node_evacuate", "node", ["name"], postgresql_where=sa.text("evacuate"))
    op.add_column("workload", sa.Column("bound", sa.Text))
    op.add_column("placement", sa.Column("relieved_by", sa.Text))
    op.drop_index("placement_slot", "placement")
    op.create_index(
        "placement_slot",
        "placement",
        ["workload", "process", "index"],
        unique=True,
        postgresql_where=sa.text("leaving is null and relieved_by is null"),
    )
    op.create_index(
        "placement_relieved",
        "placement",
        ["relieved_by"],
        postgresql_where=sa.text("relieved_by is not null and leaving is null"),
    )
    # Which workloads are on a node that fell silent, or is to be emptied.
    op.create_index("placement_node", "placement", ["node"], postgresql_where=sa.text("leaving is null"))
