"""Schedules: due once, made up for once, one at a time; a clock of their own, which the tests put forward."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from contracts.errors import InvalidInput
from gateway import cron
from runtime.store import PLATFORM
from sqlalchemy import text

from tests.customer import Customer, Refused
from tests.gateway.test_jobs import asked, ended
from tests.gateway.world import World, world
from tests.harness import Servers


@pytest.fixture
async def here(running: Servers, tmp_path: Path) -> AsyncIterator[World]:
    async with world(running, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize(
    ("schedule", "due"),
    [
        ("*/15 * * * *", datetime(2026, 3, 1, 12, 15, tzinfo=UTC)),
        ("0 3 * * 1", datetime(2026, 3, 2, 3, 0, tzinfo=UTC)),
        ("30 4 1 1 *", datetime(2027, 1, 1, 4, 30, tzinfo=UTC)),
    ],
)
def test_a_schedule_is_read_in_utc(schedule: str, due: datetime) -> None:
    assert cron.next_after(schedule, datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC)) == due


@pytest.mark.parametrize("schedule", ["* * * *", "61 * * * *", "* * * * * *", "0 0 30 2 *", "@daily x y z w"])
def test_a_schedule_that_cannot_be_is_refused(schedule: str) -> None:
    with pytest.raises(InvalidInput):
        cron.next_after(schedule, datetime(2026, 3, 1, tzinfo=UTC))


async def test_a_schedule_runs_without_overlap_and_makes_up_for_what_it_missed_once(here: World) -> None:
    customer = await here.customer()
    app, _ = await here.live(customer, "clockwork")
    path = f"/api/paas/apps/{app}/cron"
    new = {"name": "tidy-up", "schedule": "0 * * * *", "command": "python tidy.py"}
    view = await customer.call("POST", path, json=new)
    assert (view["active"], view["last"], view["overlap"]) == (True, None, False)
    with pytest.raises(Refused) as refused:
        await customer.call("POST", path, json=new)
    assert refused.value.status == 409
    await tick(here)
    assert await runs(customer, app) == []
    # Nobody was there for ten hours.
    here.harness.clock.advance(36_000)
    await tick(here)
    job = await asked(here, app, "cron")
    assert job.command == "python tidy.py"
    await tick(here)
    assert [r["status"] for r in await runs(customer, app)] == ["queued"]
    # The next hour comes, and the run is not over yet.
    here.harness.clock.advance(3_600)
    await tick(here)
    skipped, first = await runs(customer, app)
    assert (skipped["status"], first["status"]) == ("not_started", "queued")
    assert skipped["reason"] == f"left out: the run before it ({job.id}) has not ended yet"
    await here.say(ended(job))
    [listed] = (await customer.call("GET", path))["crons"]
    assert listed["last"] == "not_started"
    here.harness.clock.advance(3_600)
    await tick(here)
    second = await asked(here, app, "cron", number=2)
    assert second.id != job.id
    # With `overlap` both may run.
    await customer.call("PATCH", f"{path}/tidy-up", json={"overlap": True})
    here.harness.clock.advance(3_600)
    await tick(here)
    await asked(here, app, "cron", number=3)
    # It rests while it is switched off, and while its app is stopped.
    await customer.call("PATCH", f"{path}/tidy-up", json={"active": False})
    here.harness.clock.advance(7_200)
    await tick(here)
    await customer.call("PATCH", f"{path}/tidy-up", json={"active": True})
    await customer.call("POST", f"/api/paas/apps/{app}/stop")
    here.harness.clock.advance(7_200)
    await tick(here)
    assert len(await runs(customer, app)) == 4
    await customer.call("DELETE", f"{path}/tidy-up")
    assert (await customer.call("GET", path))["crons"] == []


async def test_a_schedule_that_cannot_be_read_holds_up_no_other(here: World) -> None:
    customer = await here.customer()
    app, _ = await here.live(customer, "clocks")
    for name in ("broken", "tidy-up"):
        new = {"name": name, "schedule": "0 * * * *", "command": "python tidy.py"}
        await customer.call("POST", f"/api/paas/apps/{app}/cron", json=new)
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        earlier = "next_at - interval '1 minute'"
        await tx.execute(
            text(f"update cron set schedule = 'never', next_at = {earlier} where name = 'broken'")
        )
    here.harness.clock.advance(3_700)
    await tick(here)
    assert len(await runs(customer, app)) == 1


async def tick(here: World) -> None:
    door: Any = here.host.service.http
    await cron.tick(door.state.desk)


async def runs(customer: Customer, app: str) -> list[dict[str, Any]]:
    found = await customer.call("GET", f"/api/paas/apps/{app}/cron/tidy-up/jobs")
    jobs: list[dict[str, Any]] = found["jobs"]
    return jobs
