"""`berth parked`: what an operator does with messages that could not be handled."""

from sqlalchemy import select, update

from runtime.clock import SystemClock
from runtime.run import make_runtime
from runtime.settings import RuntimeSettings
from runtime.store import PLATFORM, Store
from runtime.tables import ParkedRow
from runtime.telemetry import Telemetry


async def command(settings: RuntimeSettings, service: str, action: str, event: str | None) -> int:
    runtime = make_runtime(service, settings, SystemClock(), Telemetry())
    await runtime.store.open()
    try:
        if action == "list":
            return await list_parked(runtime.store)
        if action == "show":
            return await _show(runtime.store, str(event))
        if action == "drop":
            return await _drop(runtime.store, str(event))
        marked = await ask_for_replay(runtime.store, event)
        print(f"{marked} will be handled again; `berth parked {service}` shows what stays")
        return 0 if marked or event is None else 1
    finally:
        await runtime.store.close()


async def parked_rows(store: Store, event: str | None = None) -> list[ParkedRow]:
    statement = select(ParkedRow).order_by(ParkedRow.parked_at)
    if event is not None:
        statement = statement.where(ParkedRow.event_id == event)
    async with store.transaction(PLATFORM) as tx:
        return await tx.scalars(statement)


async def ask_for_replay(store: Store, event: str | None) -> int:
    """Marks messages; the running service handles them within seconds: see `Delivery.replay`."""
    statement = update(ParkedRow).values(replay=True).returning(ParkedRow.event_id)
    if event is not None:
        statement = statement.where(ParkedRow.event_id == event)
    async with store.transaction(PLATFORM) as tx:
        return len((await tx.execute(statement)).all())


async def list_parked(store: Store) -> int:
    rows = await parked_rows(store)
    if not rows:
        print("nothing is parked")
    for row in rows:
        when = f"{row.parked_at:%Y-%m-%d %H:%M:%S}"
        print(f"{row.event_id}  {row.subject:<24} {row.tries} tries  {when}  {row.error}")
    return 0


async def _show(store: Store, event: str) -> int:
    rows = await parked_rows(store, event)
    for row in rows:
        print(
            f"subject  {row.subject}\nparked   {row.parked_at}\ntries    {row.tries}\nerror    {row.error}\n"
        )
        print(row.payload.decode(errors="replace"))
    if not rows:
        print(f"no parked message {event}")
    return 0 if rows else 1


async def _drop(store: Store, event: str) -> int:
    async with store.transaction(PLATFORM) as tx:
        row = await tx.get(ParkedRow, event)
        if row is None:
            print(f"no parked message {event}")
            return 1
        await tx.delete(row)
    print(f"{event} dropped")
    return 0
