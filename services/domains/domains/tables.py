"""Domains' tables: who has which hostname, and up to which generation a workload has been seen.

A hostname that was released stays as a row without a workload, so that its revision never goes back.
"""

from runtime.tables import NAMING
from sqlalchemy import BigInteger, Index, MetaData, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class HostnameRow(Base):
    __tablename__ = "hostname"
    hostname: Mapped[str] = mapped_column(Text, primary_key=True)
    organization: Mapped[str] = mapped_column(Text)
    workload: Mapped[str | None] = mapped_column(Text)
    revision: Mapped[int] = mapped_column(BigInteger)
    # The revision the `routes` bucket has.
    written: Mapped[int] = mapped_column(BigInteger, server_default=text("0"))
    __table_args__ = (
        Index("hostname_workload", "workload"),
        Index("hostname_unwritten", "hostname", postgresql_where=text("written < revision")),
    )


class WorkloadRow(Base):
    __tablename__ = "workload"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    organization: Mapped[str] = mapped_column(Text)
    generation: Mapped[int] = mapped_column(BigInteger)
