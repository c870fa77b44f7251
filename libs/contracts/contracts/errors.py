"""One table says what an error means at the door (HTTP status) and on the bus (what happens to the message).

Anything that is not listed is a bug: 500 for the caller, retry with backoff and then parking for a message.
"""

from dataclasses import dataclass
from typing import Any, Literal


class BerthError(Exception):
    """An error somebody outside can act on: `message` says what to do, `details` carries the facts."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class InvalidInput(BerthError): ...


class Unauthenticated(BerthError): ...


class Forbidden(BerthError): ...


class NotFound(BerthError): ...


class Conflict(BerthError): ...


class TooLarge(BerthError): ...


class QuotaExceeded(BerthError): ...


class PaymentRequired(BerthError): ...


class ProviderFailed(BerthError): ...


class Unavailable(BerthError): ...


class Stale(BerthError):
    """A newer generation has already been applied: the message has nothing left to say."""


class NotYet(BerthError):
    """What the message builds on has not arrived; `after` seconds later it may have."""

    def __init__(self, message: str, after: float = 1.0, **details: Any) -> None:
        super().__init__(message, **details)
        self.after = after


class Poison(BerthError):
    """The message can never be handled, by anyone, at any time."""


Outcome = Literal["drop", "retry", "park"]


@dataclass(frozen=True, slots=True)
class Disposition:
    code: str
    category: Literal["authentication", "validation", "quota", "billing", "provider", "platform"]
    status: int
    outcome: Outcome


DISPOSITIONS: dict[type[Exception], Disposition] = {
    InvalidInput: Disposition("invalid_input", "validation", 422, "park"),
    Unauthenticated: Disposition("unauthenticated", "authentication", 401, "park"),
    Forbidden: Disposition("forbidden", "authentication", 403, "park"),
    NotFound: Disposition("not_found", "validation", 404, "drop"),
    Conflict: Disposition("conflict", "validation", 409, "drop"),
    TooLarge: Disposition("too_large", "validation", 413, "park"),
    QuotaExceeded: Disposition("quota_exceeded", "quota", 429, "drop"),
    PaymentRequired: Disposition("payment_required", "billing", 402, "drop"),
    ProviderFailed: Disposition("provider_failed", "provider", 502, "retry"),
    Unavailable: Disposition("unavailable", "platform", 503, "retry"),
    Stale: Disposition("stale", "platform", 409, "drop"),
    NotYet: Disposition("not_yet", "platform", 503, "retry"),
    Poison: Disposition("poison", "platform", 500, "park"),
}

BUG = Disposition("internal_error", "platform", 500, "retry")


def disposition(error: BaseException) -> Disposition:
    for kind in type(error).__mro__:
        if kind in DISPOSITIONS:
            return DISPOSITIONS[kind]
    return BUG


def error_body(code: str, message: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
    """The one shape in which every error leaves the platform."""
    return {"error": {"code": code, "message": message, "details": details or {}}}
