"""Routes about money: an organization's wallet and usage, asked of billing; credit, granted to it."""

from typing import Annotated

from contracts.api import CreditView, GrantCredit, UsageLine, UsageView, WalletView
from contracts.errors import Conflict, InvalidInput, NotFound
from contracts.events import CreditGranted
from contracts.ids import new_id
from contracts.money import Money
from contracts.queries import StatementOf, WalletOf
from fastapi import APIRouter, Header
from runtime.store import PLATFORM
from sqlalchemy import select

from gateway.identity_tables import OrganizationRow
from gateway.permissions import Administrator, Member
from gateway.plans import micros
from gateway.tables import CreditRow, WorkloadRow

router = APIRouter(prefix="/api", tags=["money"])

# As many charges as billing says at once.
_CHARGES = 500


@router.get("/paas/wallet")
async def show_wallet(caller: Member) -> WalletView:
    wallet = await caller.desk.bus.ask(WalletOf(organization=caller.organization))
    return WalletView(balance=wallet.balance, accrued=wallet.accrued)


@router.get("/paas/usage")
async def show_usage(caller: Member) -> UsageView:
    """What each app was charged in the periods of the newest charges, the deleted ones too."""
    desk = caller.desk
    charges = (await desk.bus.ask(StatementOf(organization=caller.organization, limit=_CHARGES))).charges
    async with desk.store.transaction(caller.organization) as tx:
        found = await tx.execute(
            select(WorkloadRow.id, WorkloadRow.name).where(
                WorkloadRow.id.in_({charge.workload for charge in charges})
            )
        )
        names: dict[str, str] = {app.id: app.name for app in found}
    seconds: dict[str, int] = {}
    amounts: dict[str, Money] = {}
    total = Money(micros=0, currency=charges[0].amount.currency if charges else desk.currency)
    for charge in charges:
        app = charge.workload
        seconds[app] = seconds.get(app, 0) + charge.seconds
        amounts[app] = charge.amount + amounts[app] if app in amounts else charge.amount
        total += charge.amount
    return UsageView(
        currency=total.currency,
        since=min((charge.period_start for charge in charges), default=None),
        total=total,
        lines=tuple(
            UsageLine(app=app, name=names.get(app), seconds=seconds[app], amount=amounts[app])
            for app in sorted(amounts, key=lambda app: -amounts[app].micros)
        ),
    )


@router.post("/admin/organizations/{organization}/credits", status_code=201)
async def grant_credit(
    organization: str,
    grant: GrantCredit,
    caller: Administrator,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200)] = None,
) -> CreditView:
    """Billing books it. The same `Idempotency-Key` again gives the same credit, once."""
    amount = Money(micros=micros(grant.amount), currency=caller.desk.currency)
    if amount.micros <= 0:
        raise InvalidInput("a credit is more than nothing", amount=grant.amount)
    async with caller.desk.store.transaction(PLATFORM) as tx:
        # Locked, so that the same key twice at once is seen here and not as a constraint's refusal.
        owner = await tx.get(OrganizationRow, organization, lock=True)
        if owner is None:
            raise NotFound("there is no such organization", organization=organization)
        known = None
        if idempotency_key is not None:
            known = await tx.one(
                select(CreditRow).where(
                    CreditRow.organization == organization, CreditRow.key == idempotency_key
                )
            )
        if known is None:
            known = CreditRow(
                id=new_id("crd"),
                organization=organization,
                micros=amount.micros,
                currency=amount.currency,
                note=grant.note,
                by=caller.user,
                key=idempotency_key,
                created_at=caller.desk.clock.now(),
            )
            tx.add(known)
            tx.publish(granted(known))
        elif (known.micros, known.note) != (amount.micros, grant.note):
            raise Conflict("this Idempotency-Key was used for another credit; use a new one", credit=known.id)
        return CreditView(
            id=known.id,
            organization=organization,
            amount=Money(micros=known.micros, currency=known.currency),
            note=known.note,
            at=known.created_at,
        )


def granted(row: CreditRow) -> CreditGranted:
    return CreditGranted(
        credit=row.id,
        organization=row.organization,
        amount=Money(micros=row.micros, currency=row.currency),
        note=row.note,
        by=row.by,
    )
