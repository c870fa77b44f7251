"""Billing's tables: spans of instances, removals of nodes, periods and their dues, charges, and the ledger.

Invariants kept by the database itself: periods do not overlap; an instance is charged once per period and
round; a posting's entries sum to zero; charges, postings and entries are never changed or deleted.
"""

from datetime import datetime

from runtime.tables import NAMING
from sqlalchemy import BigInteger, CheckConstraint, DateTime, ForeignKey, Index, MetaData, Text, func, text
from sqlalchemy.dialects.postgresql import ExcludeConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class SpanRow(Base):
    __tablename__ = "span"
    instance: Mapped[str] = mapped_column(Text, primary_key=True)
    workload: Mapped[str] = mapped_column(Text)
    organization: Mapped[str] = mapped_column(Text)
    process: Mapped[str] = mapped_column(Text)
    index: Mapped[int] = mapped_column(BigInteger)
    node: Mapped[str] = mapped_column(Text)
    micros_per_hour: Mapped[int] = mapped_column(BigInteger)
    currency: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    stopped_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    # Since when the node has not been heard: until it is, nothing after this moment is charged.
    unseen_since: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    __table_args__ = (
        Index("span_organization", "organization", "stopped_at"),
        Index("span_stopped_at", "stopped_at"),
        Index("span_node", "node", postgresql_where=text("stopped_at is null")),
    )


class RemovalRow(Base):
    """A node was taken out: what began on it before ends, at the latest, when it was last heard."""

    __tablename__ = "removal"
    node: Mapped[str] = mapped_column(Text, primary_key=True)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    heard_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class PeriodRow(Base):
    """A period that has ended."""

    __tablename__ = "period"
    starts_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), primary_key=True)
    ends_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    __table_args__ = (
        CheckConstraint("starts_at < ends_at", name="order"),
        ExcludeConstraint((func.tstzrange(text("starts_at"), text("ends_at")), "&&"), name="period_tile"),
    )


class DueRow(Base):
    """An organization's period whose charges may not be what they should be: work for `charging`."""

    __tablename__ = "due"
    period: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), ForeignKey("period.starts_at"), primary_key=True
    )
    organization: Mapped[str] = mapped_column(Text, primary_key=True)
    failures: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    retry_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class WalletRow(Base):
    """The sum of the organization's wallet entries, kept in the transactions that add them."""

    __tablename__ = "wallet"
    organization: Mapped[str] = mapped_column(Text, primary_key=True)
    currency: Mapped[str] = mapped_column(Text)
    balance: Mapped[int] = mapped_column(BigInteger)
    # Counts the postings.
    sequence: Mapped[int] = mapped_column(BigInteger)
    audited_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class PostingRow(Base):
    """One transaction of the ledger. Its id is made of what it books, so that is booked once."""

    __tablename__ = "posting"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    organization: Mapped[str] = mapped_column(Text, ForeignKey("wallet.organization"))
    # The wallet's own count: no two postings ever followed the same balance.
    sequence: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(Text)
    note: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    __table_args__ = (
        CheckConstraint("kind in ('credit', 'charge')", name="kind"),
        Index("posting_sequence", "organization", "sequence", unique=True),
    )


class EntryRow(Base):
    """Micros that came to an account (or left it: negative). An account of the platform has no balance of its
    own to be kept, so nobody waits for it: its balance is a sum."""

    __tablename__ = "entry"
    posting: Mapped[str] = mapped_column(Text, ForeignKey("posting.id"), primary_key=True)
    account: Mapped[str] = mapped_column(Text, primary_key=True)
    organization: Mapped[str] = mapped_column(Text, ForeignKey("wallet.organization"))
    micros: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (
        CheckConstraint("account in ('wallet', 'revenue', 'credits')", name="account"),
        CheckConstraint("micros <> 0", name="micros"),
        Index("entry_organization", "organization", "account"),
    )


class ChargeRow(Base):
    """What an instance was charged for a period; a later round holds only what the earlier ones missed."""

    __tablename__ = "charge"
    period: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), ForeignKey("period.starts_at"), primary_key=True
    )
    instance: Mapped[str] = mapped_column(Text, primary_key=True)
    round: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    organization: Mapped[str] = mapped_column(Text)
    workload: Mapped[str] = mapped_column(Text)
    seconds: Mapped[int] = mapped_column(BigInteger)
    micros: Mapped[int] = mapped_column(BigInteger)
    # None where a round moves no money: seconds that are free, or that another instance pays for.
    posting: Mapped[str | None] = mapped_column(Text, ForeignKey("posting.id"))
    __table_args__ = (Index("charge_organization", "organization", "period"),)
