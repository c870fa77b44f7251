"""Tokens: who is calling. Each expires, and dies with its user's token version.

What a token says about its user is remembered for a short while, so that a hot read costs no look-up; a
change on this replica is seen at once, on another one after `REMEMBERED` seconds at the latest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import jwt
from contracts.errors import Unauthenticated
from runtime.clock import Clock
from runtime.store import PLATFORM, Store, scoped

REMEMBERED = 30.0
_MOST = 10_000
_ALGORITHM = "HS256"
_PRINCIPAL = scoped(
    """
    select u.email, u.administrator,
           coalesce(json_object_agg(o.id, o.name) filter (where o.id is not null), '{}')
    from "user" u
    left join member m on m.user_id = u.id
    left join organization o on o.id = m.organization
    where u.id = %s and u.token_version = %s and scope.organization is not null
    group by u.id
    """
)


@dataclass(frozen=True, slots=True)
class Principal:
    user: str
    email: str
    administrator: bool
    # id -> name of those the user is a member of
    organizations: Mapping[str, str]
    expires: float
    # The clock's reading after which it is looked up again.
    stale: float


class Tokens:
    def __init__(self, secret: str, hours: float, store: Store, clock: Clock) -> None:
        self._secret = secret
        self._life = timedelta(hours=hours)
        self._store = store
        self._clock = clock
        self._known: dict[str, Principal] = {}

    def issue(self, user: str, version: int) -> tuple[str, datetime]:
        now = self._clock.now().replace(microsecond=0)
        expires = now + self._life
        claims = {"sub": user, "ver": version, "iat": now, "exp": expires}
        return jwt.encode(claims, self._secret, _ALGORITHM), expires

    def known(self, token: str) -> Principal | None:
        """The fast way: what was looked up a moment ago."""
        principal = self._known.get(token)
        if principal is None or self._clock.monotonic() >= principal.stale:
            return None
        return principal

    async def verify(self, token: str) -> Principal:
        user, version, expires = self._read(token)
        rows = await self._store.read(_PRINCIPAL, (PLATFORM, user, version))
        if not rows:
            raise Unauthenticated("the token was revoked; log in again")
        email, administrator, organizations = rows[0]
        remembered = min(REMEMBERED, expires - self._clock.now().timestamp())
        principal = Principal(
            user, email, administrator, organizations, expires, self._clock.monotonic() + remembered
        )
        self._known.pop(token, None)
        if len(self._known) >= _MOST:
            del self._known[next(iter(self._known))]
        self._known[token] = principal
        return principal

    def forget(self, user: str) -> None:
        for token in [t for t, principal in self._known.items() if principal.user == user]:
            del self._known[token]

    def _read(self, token: str) -> tuple[str, int, float]:
        try:
            # The expiry is required, and compared with this service's own clock below.
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                options={
                    "require": ["sub", "ver", "iat", "exp"],
                    "verify_exp": False,
                    "verify_iat": False,
                },
            )
            user, version, expires = str(claims["sub"]), int(claims["ver"]), float(claims["exp"])
        except (jwt.InvalidTokenError, ValueError, TypeError) as error:
            raise Unauthenticated("the token is not valid; log in at POST /api/auth/login") from error
        if datetime.fromtimestamp(expires, UTC) <= self._clock.now():
            raise Unauthenticated("the token has expired; log in again")
        return user, version, expires
