"""what instances suffer; one-off work: jobs, their output, schedules, and tickets to talk to a process"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "gateway_0006"
down_revision = "gateway_0005"

MOMENT = sa.DateTime(timezone=True)


def need(name: str, kind: Any, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, nullable=False, **options)


def may(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind)


def created(name: str = "created_at") -> sa.Column[Any]:
    return need(name, MOMENT, server_default=sa.func.now())


def upgrade() -> None:
    op.add_column("deployment", need("build_lines", sa.Integer, server_default="0"))
    op.add_column("deployment", need("notes", ARRAY(sa.Text), server_default=sa.text("'{}'::text[]")))
    op.add_column("workload", may("trouble", sa.Text))
    op.add_column("workload", may("trouble_until", MOMENT))
    op.create_table(
        "activity",
        sa.Column("number", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        need("id", sa.Text, unique=True),
        need("organization", sa.Text),
        need("workload", sa.Text, sa.ForeignKey("workload.id")),
        need("kind", sa.Text),
        need("process", sa.Text),
        need("words", sa.Text),
        need("at", MOMENT),
    )
    op.create_index("activity_workload", "activity", ["workload", "number"])
    op.create_table(
        "cron",
        sa.Column("id", sa.Text, primary_key=True),
        need("organization", sa.Text),
        need("workload", sa.Text, sa.ForeignKey("workload.id")),
        need("name", sa.Text),
        need("schedule", sa.Text),
        need("command", sa.Text),
        need("timeout_seconds", sa.Float),
        need("overlap", sa.Boolean),
        need("active", sa.Boolean, server_default=sa.true()),
        need("next_at", MOMENT),
        created(),
        sa.UniqueConstraint("workload", "name"),
    )
    op.create_index("cron_due", "cron", ["next_at"], postgresql_where=sa.text("active"))
    op.create_table(
        "job",
        sa.Column("id", sa.Text, primary_key=True),
        need("organization", sa.Text),
        need("workload", sa.Text, sa.ForeignKey("workload.id")),
        need("kind", sa.Text),
        sa.Column("deployment", sa.Text, unique=True),
        may("cron", sa.Text),
        need("body", JSONB),
        need("command", sa.Text),
        need("attached", sa.Boolean, server_default=sa.false()),
        need("status", sa.Text),
        may("reason", sa.Text),
        may("node", sa.Text),
        may("exit_code", sa.Integer),
        may("seconds", sa.Float),
        created(),
        created("told_at"),
        may("started_at", MOMENT),
        may("finished_at", MOMENT),
    )
    op.create_index("job_workload", "job", ["workload", "id"])
    op.create_index("job_cron", "job", ["cron"], postgresql_where=sa.text("cron is not null"))
    op.create_index(
        "job_open", "job", ["told_at"], postgresql_where=sa.text("status in ('queued', 'running')")
    )
    op.create_table(
        "job_line",
        sa.Column("job", sa.Text, sa.ForeignKey("job.id", ondelete="cascade"), primary_key=True),
        sa.Column("sequence", sa.Integer, primary_key=True),
        need("organization", sa.Text),
        need("at", MOMENT),
        need("stream", sa.Text),
        need("text", sa.Text),
    )
    op.create_table(
        "ticket",
        sa.Column("digest", sa.Text, primary_key=True),
        need("organization", sa.Text),
        need("user_id", sa.Text),
        need("workload", sa.Text, sa.ForeignKey("workload.id", ondelete="cascade")),
        need("verb", sa.Text),
        need("target", JSONB),
        need("expires_at", MOMENT),
    )
    op.create_index("ticket_expires_at", "ticket", ["expires_at"])
    for table in ("activity", "cron", "job", "job_line", "ticket"):
        tenant(op, table)
