"""What an operator can tell billing, by environment variables that begin with `BILLING_`."""

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SECONDS_PER_DAY = 86_400


class BillingSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="BILLING_", extra="ignore")

    period_seconds: int = Field(
        3600, ge=1, le=SECONDS_PER_DAY, description="Usage is charged in periods of so long; divides a day"
    )

    @field_validator("period_seconds")
    @classmethod
    def _divides_a_day(cls, value: int) -> int:
        if SECONDS_PER_DAY % value:
            raise ValueError("must divide a day (86400) without rest, as 3600, 900 or 60 do")
        return value
