"""Money: whole micros (1/1,000,000) of one currency unit. No float ever touches an amount.

An hour of the smallest plan costs a fraction of a cent and is charged to the second, so the cent is too
coarse a unit; a signed 64-bit count of micros reaches nine trillion currency units.
"""

from typing import Annotated, Self

from pydantic import Field

from contracts.model import Model
from contracts.shapes import shaped

MICROS_PER_UNIT = 1_000_000
SECONDS_PER_HOUR = 3600

Currency = Annotated[str, shaped(r"^[A-Z]{3}$", "a currency such as USD")]
Micros = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]


class Money(Model):
    """An amount in micros of `currency`: 1,500,000 micros of USD are 1.50 USD."""

    micros: Micros
    currency: Currency

    def __add__(self, other: Self) -> Self:
        self._same(other)
        return self.model_copy(update={"micros": self.micros + other.micros})

    def __sub__(self, other: Self) -> Self:
        return self + -other

    def __neg__(self) -> Self:
        return self.model_copy(update={"micros": -self.micros})

    def __str__(self) -> str:
        sign = "-" if self.micros < 0 else ""
        units, rest = divmod(abs(self.micros), MICROS_PER_UNIT)
        return f"{sign}{units}.{rest:06d} {self.currency}"

    def _same(self, other: "Money") -> None:
        if self.currency != other.currency:
            raise ValueError(f"cannot add {other.currency} to {self.currency}")


class Rate(Model):
    """What one instance costs per hour, frozen into the workload when it is created."""

    micros_per_hour: Annotated[int, Field(strict=True, ge=0, lt=2**53)]
    currency: Currency


def charge_until(rate: Rate, seconds: int) -> int:
    """Micros owed for the first `seconds` of a meter.

    Charges are differences of this running total, so parts of an hour always add up to the whole:
    no rounding is ever lost or paid twice, wherever the cuts are made.
    """
    return rate.micros_per_hour * seconds // SECONDS_PER_HOUR
