"""How many of each process are wanted, whatever release there is"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "gateway_0015"
down_revision = "gateway_0014"


def upgrade() -> None:
    op.execute("select set_config('berth.organization', '*', true)")
    op.add_column("workload", sa.Column("chosen", JSONB, nullable=False, server_default=sa.text("'{}'")))
    op.execute(
        "update workload set chosen = ("
        "select coalesce(jsonb_object_agg(name, process -> 'replicas'), '{}') "
        "from jsonb_each(processes) as had(name, process))"
    )
