"""Builds, their logs, and when a layer of the build cache was last used."""

from datetime import datetime
from typing import Literal

from runtime.lease import Leased
from runtime.tables import NAMING
from sqlalchemy import BigInteger, DateTime, Index, LargeBinary, MetaData, Text, false, func, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

State = Literal["queued", "building", "succeeded", "failed", "cancelled"]


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)


class BuildRow(Leased, Base):
    __tablename__ = "build"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    deployment: Mapped[str] = mapped_column(Text, unique=True)
    workload: Mapped[str] = mapped_column(Text)
    organization: Mapped[str] = mapped_column(Text)
    # Of its deployment: a newer one of the same app makes a build that still waits superfluous.
    number: Mapped[int] = mapped_column(server_default="0")
    # Of an environment that is not production.
    preview: Mapped[bool] = mapped_column(server_default=false())
    # `request` and `result` as JSON in text: what customers write may hold what JSONB does not.
    request: Mapped[str] = mapped_column(Text)
    state: Mapped[State] = mapped_column(Text)
    queued_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    image: Mapped[str | None] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)
    # Where the log ends: only the holder of the lease writes on from here.
    log_sequence: Mapped[int] = mapped_column(server_default="0")
    log_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    # Its image is no longer in the registry.
    withdrawn: Mapped[bool] = mapped_column(server_default=false())
    __table_args__ = (
        # The queue is the few rows of a large table that are not finished.
        Index("build_open", "queued_at", postgresql_where=text("state in ('queued', 'building')")),
        Index("build_of_workload", "workload", "finished_at"),
        # Who was served longest ago.
        Index("build_of_organization", "organization", "started_at"),
        Index(
            "build_published", "finished_at", postgresql_where=text("state = 'succeeded' and not withdrawn")
        ),
    )


class LogRow(Base):
    """Lines `first` to `last`, as JSON."""

    __tablename__ = "build_log"
    deployment: Mapped[str] = mapped_column(Text, primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    last: Mapped[int]
    organization: Mapped[str] = mapped_column(Text)
    lines: Mapped[bytes] = mapped_column(LargeBinary)


class LayerRow(Base):
    """An intermediate image: the engine itself does not remember when it was last of use."""

    __tablename__ = "layer"
    engine: Mapped[str] = mapped_column(Text, primary_key=True)
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    used_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    # What it takes of the disk by itself.
    bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
