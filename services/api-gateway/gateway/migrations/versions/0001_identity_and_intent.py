"""identity and intent"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0001"
down_revision = None

MOMENT = sa.DateTime(timezone=True)
EMPTY_OBJECT = sa.text("'{}'::jsonb")
EMPTY_ARRAY = sa.text("'{}'::text[]")


def need(name: str, kind: Any, *more: Any, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, kind, *more, nullable=False, **options)


def may(name: str, kind: Any) -> sa.Column[Any]:
    return sa.Column(name, kind)


def key(name: str = "id") -> sa.Column[Any]:
    return sa.Column(name, sa.Text, primary_key=True)


def created(name: str = "created_at") -> sa.Column[Any]:
    return need(name, MOMENT, server_default=sa.func.now())


def refers(name: str, target: str, *, primary_key: bool = False, **options: Any) -> sa.Column[Any]:
    return sa.Column(name, sa.Text, sa.ForeignKey(target, **options), nullable=False, primary_key=primary_key)


def upgrade() -> None:
    _identity()
    _offers()
    _workloads()
    _sources()
    _money()
    for table in (
        "member",
        "project",
        "workload",
        "release",
        "deployment",
        "source",
        "source_part",
        "credit",
        "wallet",
    ):
        tenant(op, table)


def _identity() -> None:
    op.create_table(
        "user",
        key(),
        need("email", sa.Text, unique=True),
        need("password_hash", sa.Text),
        need("administrator", sa.Boolean, server_default=sa.false()),
        need("token_version", sa.Integer, server_default="1"),
        created(),
    )
    op.create_table(
        "attempt",
        key("email"),
        key("address"),
        need("failures", sa.Integer),
        need("since", MOMENT),
    )
    op.create_table(
        "organization",
        key(),
        need("name", sa.Text),
        need("number", sa.BigInteger, sa.Identity(always=True), unique=True),
        created(),
    )
    op.create_table(
        "member",
        refers("organization", "organization.id", primary_key=True),
        refers("user_id", "user.id", primary_key=True),
    )
    op.create_index("member_user_id", "member", ["user_id"])
    op.create_table(
        "project",
        key(),
        refers("organization", "organization.id"),
        need("name", sa.Text),
        sa.UniqueConstraint("organization", "name", name="project_organization_name_key"),
    )


def _offers() -> None:
    op.create_table(
        "plan",
        key("name"),
        need("title", sa.Text),
        need("limits", JSONB),
        need("max_replicas", sa.Integer),
        need("micros_per_hour", sa.BigInteger),
        need("micros_per_month", sa.BigInteger),
        need("currency", sa.Text),
        may("runtimes", ARRAY(sa.Text)),
        need("active", sa.Boolean, server_default=sa.true()),
    )
    op.create_table(
        "runtime",
        key("name"),
        need("type", sa.Text),
        need("version", sa.Text),
        need("image", sa.Text),
        may("build_image", sa.Text),
        may("build_command", sa.Text),
        may("start_command", sa.Text),
        need("active", sa.Boolean, server_default=sa.true()),
    )


def _workloads() -> None:
    op.create_table(
        "workload",
        key(),
        refers("organization", "organization.id"),
        refers("project", "project.id"),
        need("name", sa.Text),
        need("environment", sa.Text),
        need("generation", sa.Integer),
        need("state", sa.Text),
        need("suspended", sa.Boolean, server_default=sa.false()),
        need("region", sa.Text),
        need("plan", sa.Text),
        need("limits", JSONB),
        need("micros_per_hour", sa.BigInteger),
        need("currency", sa.Text),
        need("uid", sa.BigInteger),
        need("processes", JSONB),
        need("replicas", sa.Integer),
        may("chosen_port", sa.Integer),
        need("port", sa.Integer),
        need("health", JSONB),
        may("git", JSONB),
        need("build", JSONB),
        need("restarts", sa.Integer, server_default="0"),
        need("deployments", sa.Integer, server_default="0"),
        may("image", sa.Text),
        may("release", sa.Text),
        may("deployment", sa.Text),
        may("good_release", sa.Text),
        need("live", sa.Boolean, server_default=sa.false()),
        may("placement", JSONB),
        may("blockage", JSONB),
        need("rollouts", JSONB, server_default=EMPTY_OBJECT),
        may("url", sa.Text),
        may("url_at", MOMENT),
        need("status", sa.Text),
        may("reason", sa.Text),
        created(),
    )
    op.create_index("workload_organization", "workload", ["organization", "id"])
    op.create_index(
        "workload_name_key",
        "workload",
        ["name", "environment"],
        unique=True,
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.create_table(
        "release",
        key(),
        need("organization", sa.Text),
        refers("workload", "workload.id"),
        need("deployment", sa.Text, unique=True),
        need("image", sa.Text),
        need("digest", sa.Text),
        need("processes", JSONB),
        may("port", sa.Integer),
    )
    op.create_index("release_workload", "release", ["workload"])
    op.create_table(
        "deployment",
        key(),
        need("organization", sa.Text),
        refers("workload", "workload.id"),
        need("number", sa.Integer),
        need("status", sa.Text),
        may("reason", sa.Text),
        need("source", JSONB),
        need("build", JSONB),
        may("recipe", sa.Text),
        may("image", sa.Text),
        may("size_bytes", sa.BigInteger),
        may("commit", sa.Text),
        may("exit_code", sa.Integer),
        may("failed_step", sa.Text),
        may("seconds", sa.Double),
        need("log_tail", ARRAY(sa.Text), server_default=EMPTY_ARRAY),
        created(),
        created("status_at"),
        created("told_at"),
        may("finished_at", MOMENT),
        sa.UniqueConstraint("workload", "number", name="deployment_workload_number_key"),
    )
    op.create_index(
        "deployment_pending",
        "deployment",
        ["status", "told_at"],
        postgresql_where=sa.text("status in ('queued', 'building', 'deploying')"),
    )


def _sources() -> None:
    op.create_table(
        "source",
        key(),
        need("organization", sa.Text),
        refers("workload", "workload.id"),
        need("sha256", sa.Text),
        need("size", sa.BigInteger),
        need("files", sa.Integer),
        need("parts", sa.Integer),
    )
    op.create_index("source_workload", "source", ["workload"])
    op.create_table(
        "source_part",
        refers("source", "source.id", primary_key=True, ondelete="cascade"),
        sa.Column("index", sa.Integer, primary_key=True),
        need("organization", sa.Text),
        need("data", sa.LargeBinary),
    )
    # Archives do not get smaller by being compressed again.
    op.execute("alter table source_part alter column data set storage external")


def _money() -> None:
    op.create_table(
        "credit",
        key(),
        refers("organization", "organization.id"),
        need("micros", sa.BigInteger),
        need("currency", sa.Text),
        need("note", sa.Text),
        need("by", sa.Text),
        may("key", sa.Text),
        created(),
        sa.UniqueConstraint("organization", "key", name="credit_organization_key_key"),
    )
    op.create_table(
        "wallet",
        key("organization"),
        need("sequence", sa.BigInteger),
        need("micros", sa.BigInteger),
        need("currency", sa.Text),
        need("said_at", MOMENT),
    )
    op.create_table(
        "alert",
        sa.Column("number", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        need("id", sa.Text, unique=True),
        need("service", sa.Text),
        need("severity", sa.Text),
        need("title", sa.Text),
        need("details", JSONB),
        need("at", MOMENT),
    )
    op.create_index("alert_at", "alert", ["at"])
