"""The base of every value that crosses a boundary.

Input from outside is strict (`Strict`: an unknown field is an error that names it); what one
service tells another is lenient towards additions (`Model`: an older reader ignores a newer field).
"""

from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_timedelta="float")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    @field_validator("*")
    @classmethod
    def _storable(cls, value: Any) -> Any:
        if _has_nul(value):
            raise ValueError("text cannot hold a NUL character")
        return value


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_has_nul(one) for pair in value.items() for one in pair)
    return isinstance(value, tuple | list) and any(_has_nul(one) for one in value)


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return value


def _storable(text: str) -> str:
    return text.replace("\0", "\ufffd")


# What a process has written or a node has said: nodes are not trusted, and no text of Postgres holds a NUL.
Words = Annotated[str, AfterValidator(_storable)]

Moment = Annotated[datetime, AfterValidator(_aware)]
