"""Who may call what. Every route names one permission, and one that names none stops the start.

A member's route speaks for one organization: the one in the header `X-Organization`, or the caller's only
one. It is one of the token's user, and nothing else in the request can name another (I5).
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

from contracts.errors import Forbidden, InvalidInput, NotFound, Unauthenticated
from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase

from gateway.desk import Desk
from gateway.tokens import Principal

ORGANIZATION_HEADER = {
    "in": "header",
    "name": "X-Organization",
    "required": False,
    "schema": {"type": "string"},
    "description": "The organization you speak for; needed only when you are a member of several.",
}


@dataclass(frozen=True, slots=True)
class Caller:
    desk: Desk
    token: str
    principal: Principal

    @property
    def user(self) -> str:
        return self.principal.user


@dataclass(frozen=True, slots=True)
class Speaker:
    """A caller who speaks for an organization."""

    desk: Desk
    user: str
    organization: str


class Permission:
    """A route's one permission, given to it as a dependency."""


class Anyone(Permission):
    async def __call__(self, request: Request) -> Desk:
        return _desk(request)


class LoggedIn(Permission, SecurityBase):
    def __init__(self) -> None:
        self.model = HTTPBearer(bearerFormat="JWT")
        self.scheme_name = "token"

    async def __call__(self, request: Request) -> Caller:
        desk, token, principal = await _principal(request)
        return Caller(desk, token, principal)


class OfOrganization(LoggedIn):
    async def __call__(self, request: Request) -> Speaker:  # type: ignore[override]
        desk, token, principal = await _principal(request)
        wanted, mine = request.headers.get("x-organization"), principal.organizations
        if wanted not in mine if wanted else len(mine) != 1:
            # A membership may be younger than what is remembered.
            principal = await desk.tokens.verify(token)
        return Speaker(desk, principal.user, _organization(principal, wanted))


class OfPlatform(LoggedIn):
    async def __call__(self, request: Request) -> Caller:
        desk, token, principal = await _principal(request)
        if not principal.administrator:
            raise Forbidden("only an administrator of the platform may do this")
        return Caller(desk, token, principal)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


async def _principal(request: Request) -> tuple[Desk, str, Principal]:
    desk = _desk(request)
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if not token or kind.lower() != "bearer":
        raise Unauthenticated("send a token as `Authorization: Bearer …`; POST /api/auth/login gives one")
    return desk, token, desk.tokens.known(token) or await desk.tokens.verify(token)


def _organization(principal: Principal, wanted: str | None) -> str:
    mine = principal.organizations
    if wanted:
        if wanted not in mine:
            raise NotFound("there is no such organization; GET /api/organizations lists yours")
        return wanted
    if len(mine) == 1:
        return next(iter(mine))
    if not mine:
        raise Forbidden("you are in no organization; create one with POST /api/organizations")
    raise InvalidInput(
        "you are in several organizations; name one in the header X-Organization", organizations=dict(mine)
    )


_MEMBER = OfOrganization()
Visitor = Annotated[Desk, Depends(Anyone())]
User = Annotated[Caller, Security(LoggedIn())]
Member = Annotated[Speaker, Security(_MEMBER)]
Administrator = Annotated[Caller, Security(OfPlatform())]

_PERMISSION = "__permission__"


def for_member(
    endpoint: Callable[[Request, Speaker], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    """What `caller: Member` does, for a hot read: there the framework's resolving of a dependency would cost
    half as much as all the rest of it."""

    async def guarded(request: Request) -> Response:
        return await endpoint(request, await _MEMBER(request))

    guarded.__name__, guarded.__doc__ = endpoint.__name__, endpoint.__doc__
    setattr(guarded, _PERMISSION, _MEMBER)
    return guarded


def permission_of(route: APIRoute) -> Permission:
    inline = getattr(route.endpoint, _PERMISSION, None)
    if isinstance(inline, Permission):
        return inline
    calls = [dependency.call for dependency in route.dependant.dependencies]
    named: list[Permission] = [call for call in calls if isinstance(call, Permission)]  # type: ignore[misc]
    if len(named) != 1:
        raise RuntimeError(
            f"{sorted(route.methods or ())} {route.path} names {len(named) or 'no'} permissions; it needs one"
        )
    return named[0]


def require_permissions(routers: Iterable[APIRouter]) -> None:
    """Deny by default: run on every router before any of them is served."""
    for router in routers:
        for route in router.routes:
            if not isinstance(route, APIRoute):
                raise RuntimeError(f"{route!r} is no API route, so it can name no permission")
            if isinstance(permission_of(route), OfOrganization):
                _document_organization(route)


def _document_organization(route: APIRoute) -> None:
    extra = route.openapi_extra or {}
    parameters = extra.get("parameters", [])
    if ORGANIZATION_HEADER in parameters:
        return
    route.openapi_extra = {**extra, "parameters": [*parameters, ORGANIZATION_HEADER]}
    if hasattr(route.endpoint, _PERMISSION):
        # The framework documents what is a dependency, and this one is not.
        route.openapi_extra["security"] = [{_MEMBER.scheme_name: []}]
