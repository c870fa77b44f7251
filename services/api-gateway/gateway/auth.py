"""Routes of identity: register, log in, who am I."""

from contracts.api import LogIn, Me, OrganizationView, Register, Token
from fastapi import APIRouter, Request, Response

from gateway import accounts
from gateway.desk import Desk
from gateway.identity_tables import UserRow
from gateway.permissions import User, Visitor

router = APIRouter(prefix="/api/auth", tags=["identity"])


@router.post("/register", status_code=201)
async def register(new: Register, desk: Visitor) -> Token:
    """An account and its first organization; the answer is a log-in."""
    user = await accounts.register(desk, new.email, new.password.get_secret_value(), new.organization)
    return _token(desk, user)


@router.post("/login")
async def log_in(who: LogIn, request: Request, desk: Visitor) -> Token:
    address = request.client.host if request.client else "unknown"
    return _token(desk, await accounts.log_in(desk, who.email, who.password.get_secret_value(), address))


@router.post("/logout", status_code=204, response_class=Response)
async def log_out(caller: User) -> None:
    """Ends every log-in of the caller, on every device."""
    await accounts.log_out(caller.desk, caller.user)


@router.get("/me")
async def me(caller: User) -> Me:
    principal = await caller.desk.tokens.verify(caller.token)
    return Me(
        id=principal.user,
        email=principal.email,
        administrator=principal.administrator,
        organizations=tuple(OrganizationView(id=i, name=n) for i, n in principal.organizations.items()),
    )


def _token(desk: Desk, user: UserRow) -> Token:
    token, expires = desk.tokens.issue(user.id, user.token_version)
    return Token(token=token, expires_at=expires)
