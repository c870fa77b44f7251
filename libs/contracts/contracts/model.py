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
        if isinstance(value, str) and "\0" in value:
            raise ValueError("text cannot hold a NUL character")
        return value


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return value


Moment = Annotated[datetime, AfterValidator(_aware)]
