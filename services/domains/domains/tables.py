"""Tables of domains: the hostnames that were ever given, and the newest generation heard of each workload.

Invariant kept by the database itself: a hostname has one row for ever, and so one workload at a time.
"""

from datetime import datetime

from runtime.tables import NAMING
from sqlalchemy import BigInteger, DateTime, Index, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class WorkloadRow(Base):
    """Stays when the workload is deleted: nothing older may bring it back."""

    __tablename__ = "workload"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    organization: Mapped[str] = mapped_column(Text)
    generation: Mapped[int] = mapped_column(BigInteger)


class HostnameRow(Base):
    __tablename__ = "hostname"
    hostname: Mapped[str] = mapped_column(Text, primary_key=True)
    # Whose it is; of a released one, whose it was.
    workload: Mapped[str] = mapped_column(Text)
    organization: Mapped[str] = mapped_column(Text)
    # As it was last announced.
    url: Mapped[str] = mapped_column(Text)
    # Counts the changes of the route, also from one workload to the next.
    revision: Mapped[int] = mapped_column(BigInteger)
    # The revision that stands in the bucket.
    written: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    released_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    __table_args__ = (
        Index("hostname_workload", "workload", postgresql_where=text("released_at is null")),
        Index("hostname_unwritten", "hostname", postgresql_where=text("written < revision")),
    )
