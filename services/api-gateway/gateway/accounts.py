"""Users and their organizations: how they come to be, and how a log-in is judged.

Invariants: an unknown e-mail and a wrong password take the same time and get the same answer; an attempt is
counted before it is judged, so that many at once are no way around the limit.
"""

from datetime import timedelta

import structlog
from contracts.errors import Conflict, Forbidden, QuotaExceeded, Unauthenticated
from contracts.ids import new_id
from runtime.store import PLATFORM, Tx
from sqlalchemy import case, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from gateway.desk import Desk
from gateway.identity_tables import AttemptRow, MemberRow, OrganizationRow, ProjectRow, UserRow

log = structlog.get_logger("gateway.accounts")

TRIES = 10
WINDOW = timedelta(minutes=15)
# Each organization has a range of user ids of its own on every node.
_FIRST_UID = 100_000
_UIDS = 1_000


def uid_of(number: int) -> int:
    return _FIRST_UID + number * _UIDS


async def register(desk: Desk, email: str, password: str, organization: str) -> UserRow:
    if not desk.settings.registration:
        raise Forbidden("registration is closed; ask the operator of this platform for an account")
    user = UserRow(id=new_id("usr"), email=email, password_hash=await desk.passwords.hash(password))
    user.token_version = 1
    mine = new_id("org")
    try:
        async with desk.store.transaction(mine) as tx:
            tx.add(user)
            await tx.flush()
            await found_organization(tx, mine, organization, user.id)
    except IntegrityError as error:
        raise Conflict("there is an account with this e-mail already; log in", email=email) from error
    return user


async def found_organization(tx: Tx, organization: str, name: str, founder: str) -> None:
    """In a transaction of the new organization's own scope."""
    tx.add(OrganizationRow(id=organization, name=name))
    await tx.flush()
    tx.add(MemberRow(organization=organization, user_id=founder))
    tx.add(ProjectRow(id=new_id("prj"), organization=organization, name="default"))


async def log_in(desk: Desk, email: str, password: str, address: str) -> UserRow:
    await count_attempt(desk, email, address, "failed log-ins")
    async with desk.store.transaction(PLATFORM) as tx:
        user = await tx.one(select(UserRow).where(UserRow.email == email))
    if not await desk.passwords.matches(user.password_hash if user else None, password) or user is None:
        raise Unauthenticated("the e-mail or the password is wrong")
    await forgive_attempts(desk, email, address)
    return user


async def forgive_attempts(desk: Desk, email: str, address: str) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(delete(AttemptRow).where(AttemptRow.email == email, AttemptRow.address == address))


async def count_attempt(desk: Desk, email: str, address: str, what: str) -> None:
    now = desk.clock.now()
    over = AttemptRow.since < now - WINDOW
    async with desk.store.transaction(PLATFORM) as tx:
        counted = await tx.execute(
            insert(AttemptRow)
            .values(email=email, address=address, failures=1, since=now)
            .on_conflict_do_update(
                index_elements=["email", "address"],
                set_={
                    "failures": case((over, 1), else_=AttemptRow.failures + 1),
                    "since": case((over, now), else_=AttemptRow.since),
                },
            )
            .returning(AttemptRow.failures, AttemptRow.since)
        )
        attempt = counted.one()
    if attempt.failures > TRIES:
        wait = int((attempt.since + WINDOW - now).total_seconds()) + 1
        raise QuotaExceeded(
            f"too many {what}; try again in {wait // 60 + 1} minutes", retry_after_seconds=wait
        )


async def forget_attempts(desk: Desk) -> None:
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(delete(AttemptRow).where(AttemptRow.since < desk.clock.now() - WINDOW))


async def log_out(desk: Desk, user: str) -> None:
    """Every token of the user, everywhere."""
    async with desk.store.transaction(PLATFORM) as tx:
        row = await tx.get(UserRow, user, lock=True)
        if row is not None:
            row.token_version += 1
    desk.tokens.forget(user)


async def first_administrator(desk: Desk) -> None:
    """From the settings, once: where there is an administrator already, nothing changes."""
    settings = desk.settings
    email = settings.admin_email.strip().lower()
    async with desk.store.transaction(PLATFORM) as tx:
        await tx.execute(text("select pg_advisory_xact_lock(hashtext('gateway.first_administrator'))"))
        if await tx.one(select(func.count()).select_from(UserRow).where(UserRow.administrator)):
            return
        if not email:
            log.warning(
                "there is no administrator; set GATEWAY_ADMIN_EMAIL and GATEWAY_ADMIN_PASSWORD, start again"
            )
            return
        hashed = await desk.passwords.hash(settings.admin_password.get_secret_value())
        # Whoever registered with this e-mail before the operator did is not the administrator.
        await tx.execute(
            insert(UserRow)
            .values(id=new_id("usr"), email=email, password_hash=hashed, administrator=True)
            .on_conflict_do_update(
                index_elements=["email"],
                set_={
                    "password_hash": hashed,
                    "administrator": True,
                    "token_version": UserRow.token_version + 1,
                },
            )
        )
    log.info("first administrator created", email=email)
