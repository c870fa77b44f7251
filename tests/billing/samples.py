"""Instances, periods and a look into the books, for the tests of billing."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from billing.charging import Charging, close
from billing.metering import Metering
from billing.periods import EPOCH, tick_id
from contracts.events import BillingTick, CreditGranted, InstanceStarted, InstanceStopped, NodeRemoved
from contracts.ids import new_id
from contracts.money import Money, Rate
from contracts.workload import Slot
from runtime.runtime import Runtime
from runtime.store import PLATFORM

START = datetime(2026, 3, 1, tzinfo=UTC)
RATE = Rate(micros_per_hour=7001, currency="USD")


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def started(organization: str, since: datetime, **fields: Any) -> InstanceStarted:
    return InstanceStarted.model_validate(
        {
            "node": "local",
            "instance": new_id("ins"),
            "workload": new_id("app"),
            "organization": organization,
            "slot": Slot(process="web", index=0),
            "generation": 1,
            "deployment": None,
            "rate": RATE,
            "started_at": since,
        }
        | fields
    )


def stopped(start: InstanceStarted, stopped_at: datetime, **fields: Any) -> InstanceStopped:
    return InstanceStopped.model_validate(
        start.model_dump(exclude={"id", "at"}) | {"stopped_at": stopped_at, "reason": "stopped"} | fields
    )


def granted(organization: str, micros: int, **fields: Any) -> CreditGranted:
    return CreditGranted.model_validate(
        {
            "credit": new_id("crd"),
            "organization": organization,
            "amount": Money(micros=micros, currency="USD"),
            "note": "welcome",
            "by": new_id("usr"),
        }
        | fields
    )


@dataclass
class SetClock:
    """Stands still until it is set."""

    moment: datetime = START

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    async def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Biller:
    """Billing's own parts on a real database, without a bus: the test decides what happens when."""

    def __init__(self, runtime: Runtime, period_seconds: int = 60) -> None:
        self.clock = SetClock()
        self.runtime = replace(runtime, clock=self.clock)
        self.charging = Charging(self.runtime, "USD", period_seconds)
        self.metering = Metering(self.runtime, "USD", lambda: None)

    async def record(self, *events: InstanceStarted | InstanceStopped | NodeRemoved) -> None:
        for event in events:
            async with self.runtime.store.transaction(PLATFORM) as tx:
                if isinstance(event, InstanceStarted):
                    await self.metering.started([event], tx)
                elif isinstance(event, NodeRemoved):
                    await self.metering.node_removed(event, tx)
                else:
                    await self.metering.stopped([event], tx)

    async def pass_until(self, moment: datetime) -> None:
        """Time goes on: periods end, their ticks come (twice) and what is due is charged."""
        self.clock.moment = moment
        last = await self.runtime.store.read("select max(ends_at) from period")
        while await self.charging.end_periods():
            pass
        ended = await self.runtime.store.read(
            "select starts_at, ends_at from period where starts_at >= %s order by 1",
            (last[0][0] or EPOCH,),
        )
        for start, end in ended:
            await self.tick(start, end)
        await self.charge()
        for start, end in ended:
            await self.tick(start, end)

    async def tick(self, start: datetime, end: datetime) -> None:
        event = BillingTick(id=tick_id(start, end), period_start=start, period_end=end)
        async with self.runtime.store.transaction(PLATFORM) as tx:
            await close(lambda: None, event, tx)

    async def charge(self) -> None:
        while await self.charging.charge():
            pass

    async def rows(self, sql: str, *parameters: Any) -> list[Any]:
        """As the platform sees it."""
        async with self.runtime.store.transaction(PLATFORM) as tx:
            return list(await (await (await tx.connection()).execute(sql, parameters)).fetchall())

    async def one(self, sql: str, *parameters: Any) -> Any:
        return (await self.rows(sql, *parameters))[0][0]

    async def charged(self, organization: str) -> dict[str, tuple[int, int]]:
        """instance -> seconds, micros"""
        rows = await self.rows(
            "select instance, sum(seconds)::bigint, sum(micros)::bigint from charge where organization = %s "
            "group by 1 having sum(seconds) <> 0 or sum(micros) <> 0",
            organization,
        )
        return {instance: (seconds, micros) for instance, seconds, micros in rows}

    async def balance(self, organization: str) -> int:
        found = await self.rows("select balance from wallet where organization = %s", organization)
        return int(found[0][0]) if found else 0

    async def assert_books_balance(self) -> None:
        assert await self.one("select coalesce(sum(micros), 0) from entry") == 0
        assert await self.rows("select posting from entry group by posting having sum(micros) <> 0") == []
        wrong = await self.rows(
            "select organization from wallet w where balance <> (select coalesce(sum(micros), 0) from entry "
            "where entry.organization = w.organization and account = 'wallet') or sequence <> "
            "(select count(*) from posting where posting.organization = w.organization)"
        )
        assert wrong == []
        revenue = await self.one("select coalesce(sum(micros), 0) from entry where account = 'revenue'")
        assert revenue == await self.one("select coalesce(sum(micros), 0) from charge")
