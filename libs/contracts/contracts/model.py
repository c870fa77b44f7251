"""The base of every value that crosses a boundary.

Input from outside is strict (`Strict`: an unknown field is an error that names it); what one
service tells another is lenient towards additions (`Model`: an older reader ignores a newer field).
"""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_timedelta="float")


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a moment needs a time zone")
    return value


Moment = Annotated[datetime, AfterValidator(_aware)]
