"""span, period, due, wallet, posting, entry, charge"""

import sqlalchemy as sa
from alembic import op
from runtime.migrations import tenant

revision = "billing_0001"
down_revision = None


def _moment(name: str, *, nullable: bool = False) -> sa.Column[object]:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)


def _text(name: str, *foreign: sa.ForeignKey, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, *foreign, nullable=nullable)


def _number(name: str, default: str | None = None) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=default and sa.text(default))


def _period() -> sa.Column[object]:
    return sa.Column(
        "period", sa.DateTime(timezone=True), sa.ForeignKey("period.starts_at"), primary_key=True
    )


def upgrade() -> None:
    op.create_table(
        "span",
        sa.Column("instance", sa.Text, primary_key=True),
        _text("workload"),
        _text("organization"),
        _text("process"),
        _number("index"),
        _text("node"),
        _number("micros_per_hour"),
        _text("currency"),
        _moment("started_at"),
        _moment("stopped_at", nullable=True),
        _moment("unseen_since", nullable=True),
    )
    op.create_index("span_organization", "span", ["organization", "stopped_at"])
    op.create_index("span_stopped_at", "span", ["stopped_at"])
    op.create_index("span_node", "span", ["node"], postgresql_where=sa.text("stopped_at is null"))
    op.create_table(
        "period",
        sa.Column("starts_at", sa.DateTime(timezone=True), primary_key=True),
        _moment("ends_at"),
        sa.CheckConstraint("starts_at < ends_at", name="period_order_check"),
    )
    op.execute(
        "alter table period add constraint period_tile "
        "exclude using gist (tstzrange(starts_at, ends_at) with &&)"
    )
    op.create_table(
        "due",
        _period(),
        sa.Column("organization", sa.Text, primary_key=True),
        _number("failures", "0"),
        _moment("retry_at", nullable=True),
    )
    op.create_table(
        "wallet",
        sa.Column("organization", sa.Text, primary_key=True),
        _text("currency"),
        _number("balance"),
        _number("sequence"),
        _moment("audited_at", nullable=True),
    )
    op.create_table(
        "posting",
        sa.Column("id", sa.Text, primary_key=True),
        _text("organization", sa.ForeignKey("wallet.organization")),
        _number("sequence"),
        _text("kind"),
        _text("note"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.CheckConstraint("kind in ('credit', 'charge')", name="posting_kind_check"),
    )
    op.create_index("posting_sequence", "posting", ["organization", "sequence"], unique=True)
    op.create_table(
        "entry",
        sa.Column("posting", sa.Text, sa.ForeignKey("posting.id"), primary_key=True),
        sa.Column("account", sa.Text, primary_key=True),
        _text("organization", sa.ForeignKey("wallet.organization")),
        _number("micros"),
        sa.CheckConstraint("account in ('wallet', 'revenue', 'credits')", name="entry_account_check"),
        sa.CheckConstraint("micros <> 0", name="entry_micros_check"),
    )
    op.create_index("entry_organization", "entry", ["organization", "account"])
    op.create_table(
        "charge",
        _period(),
        sa.Column("instance", sa.Text, primary_key=True),
        sa.Column("round", sa.BigInteger, primary_key=True),
        _text("organization"),
        _text("workload"),
        _number("seconds"),
        _number("micros"),
        _text("posting", sa.ForeignKey("posting.id"), nullable=True),
    )
    op.create_index("charge_organization", "charge", ["organization", "period"])
    for table in ("span", "due", "wallet", "posting", "entry", "charge"):
        tenant(op, table)

    op.execute(
        """
        create function refuse_change() returns trigger language plpgsql set search_path from current as $$
        begin
            raise exception '% is append-only; book a correction instead', tg_table_name
                using errcode = 'integrity_constraint_violation';
        end $$
        """
    )
    for table in ("posting", "entry", "charge"):
        op.execute(
            f"create trigger {table}_append_only before update or delete or truncate on {table} "
            "for each statement execute function refuse_change()"
        )
    # Deferred to the commit: only then are both sides of a posting there.
    op.execute(
        """
        create function refuse_imbalance() returns trigger language plpgsql set search_path from current as $$
        begin
            if (select sum(micros) from entry where posting = new.posting) <> 0 then
                raise exception 'the entries of posting % do not sum to zero', new.posting
                    using errcode = 'integrity_constraint_violation';
            end if;
            return null;
        end $$
        """
    )
    op.execute(
        "create constraint trigger entry_balanced after insert on entry deferrable initially deferred "
        "for each row execute function refuse_imbalance()"
    )
