"""Who the gateway's users are, and what they belong to; and what all its tables stand on: see `tables`."""

from datetime import datetime
from typing import Any

from runtime.tables import NAMING
from sqlalchemy import (
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    MetaData,
    Text,
    UniqueConstraint,
    false,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Json = dict[str, Any]


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {
        str: Text,
        datetime: DateTime(timezone=True),
        Json: JSONB(none_as_null=True),
        list[Json]: JSONB(none_as_null=True),
        list[str]: ARRAY(Text),
    }


def created() -> Any:
    return mapped_column(server_default=func.now())


class UserRow(Base):
    __tablename__ = "user"
    id: Mapped[str] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    administrator: Mapped[bool] = mapped_column(server_default=false())
    # A token carries the version it was made at; raising it revokes every token of the user.
    token_version: Mapped[int] = mapped_column(server_default="1")
    created_at: Mapped[datetime] = created()


class AttemptRow(Base):
    """Failed log-ins of one account from one address since `since`."""

    __tablename__ = "attempt"
    email: Mapped[str] = mapped_column(primary_key=True)
    address: Mapped[str] = mapped_column(primary_key=True)
    failures: Mapped[int]
    since: Mapped[datetime]


class OrganizationRow(Base):
    __tablename__ = "organization"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    # Never given twice: the range of user ids on the nodes is made of it.
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    created_at: Mapped[datetime] = created()


class MemberRow(Base):
    __tablename__ = "member"
    organization: Mapped[str] = mapped_column(ForeignKey("organization.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), primary_key=True, index=True)


class ProjectRow(Base):
    __tablename__ = "project"
    id: Mapped[str] = mapped_column(primary_key=True)
    organization: Mapped[str] = mapped_column(ForeignKey("organization.id"))
    name: Mapped[str]
    __table_args__ = (UniqueConstraint("organization", "name"),)
