"""jobs"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant
from sqlalchemy.dialects.postgresql import JSONB

revision = "scheduler_0004"
down_revision = "scheduler_0003"


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _flag(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.text("false"))


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.Text, primary_key=True),
        _text("organization"),
        _text("workload"),
        _text("region"),
        _text("kind"),
        sa.Column("body", JSONB, nullable=False),
        _text("state"),
        sa.Column("node", sa.Text),
        *(
            sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
            for name in ("cpu_millis", "memory_mb", "disk_mb")
        ),
        _flag("cancelled"),
        _moment("start_before"),
        _moment("deadline"),
        _flag("written"),
        _flag("removed"),
        sa.Column("ending", JSONB),
        _moment("ended_at", nullable=True),
        sa.CheckConstraint("state in ('waiting', 'placed', 'ended')", name="job_state_check"),
    )
    op.create_index("job_open", "job", ["workload"], postgresql_where=sa.text("state <> 'ended'"))
    op.create_index(
        "job_unremoved", "job", ["id"], postgresql_where=sa.text("state = 'ended' and not removed")
    )
    tenant(op, "job")
