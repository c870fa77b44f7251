"""Routes of organizations: a user's own, and for the administrator all of them."""

from contracts.api import (
    AccountedOrganizationList,
    CreateOrganization,
    OrganizationList,
    OrganizationView,
)
from contracts.errors import QuotaExceeded
from contracts.ids import new_id
from fastapi import APIRouter, Response
from runtime.store import PLATFORM
from sqlalchemy import func, select

from gateway import accounts, pages
from gateway.identity_tables import MemberRow
from gateway.permissions import Administrator, Caller, User

router = APIRouter(prefix="/api", tags=["organizations"])

_ALL = pages.page(
    "organizations",
    """json_build_object(
        'id', o.id, 'name', o.name, 'created_at', o.created_at,
        'apps', (select count(*) from workload w where w.organization = o.id and w.state <> 'deleted'),
        'balance', (
            select json_build_object('micros', b.micros, 'currency', b.currency)
            from wallet b where b.organization = o.id
        )
    )""",
    "from organization o where scope.organization is not null and {after}",
    "o.id",
)


@router.get("/organizations")
async def list_organizations(caller: User) -> OrganizationList:
    principal = await caller.desk.tokens.verify(caller.token)
    return OrganizationList(
        organizations=tuple(OrganizationView(id=i, name=n) for i, n in principal.organizations.items())
    )


@router.post("/organizations", status_code=201)
async def create_organization(new: CreateOrganization, caller: User) -> OrganizationView:
    await _require_room(caller)
    mine = new_id("org")
    async with caller.desk.store.transaction(mine) as tx:
        await accounts.found_organization(tx, mine, new.name, caller.user)
    caller.desk.tokens.forget(caller.user)
    return OrganizationView(id=mine, name=new.name)


async def _require_room(caller: Caller) -> None:
    most = caller.desk.settings.organizations_per_user
    async with caller.desk.store.transaction(PLATFORM) as tx:
        found = await tx.execute(
            select(func.count()).select_from(MemberRow).where(MemberRow.user_id == caller.user)
        )
    if found.scalar_one() >= most:
        raise QuotaExceeded(f"a user has at most {most} organizations; ask the operator for more", most=most)


@router.get("/admin/organizations", response_model=AccountedOrganizationList)
async def list_all_organizations(caller: Administrator, after: str | None = None) -> Response:
    return await pages.listed(caller.desk.store, _ALL, PLATFORM, after=after)
