"""What one customer may take of the control plane: refused in words beyond, and soon let go."""

from collections.abc import AsyncIterator

import pytest
from gateway.tables import JobRow, SourceRow, WorkloadRow
from runtime.store import PLATFORM
from sqlalchemy import func, select

from tests.customer import Customer, Refused
from tests.gateway.test_cron import tick
from tests.gateway.test_jobs import asked, ended
from tests.gateway.world import SOURCE, World, world
from tests.harness import Servers


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    limits = {
        "apps_per_organization": 2,
        "organizations_per_user": 2,
        "uploads_per_hour": 4,
        "commands_per_hour": 4,
        "jobs_per_app": 2,
        "sources_kept": 2,
    }
    async with world(running, tmp_path_factory.mktemp("limits"), **limits) as opened:
        yield opened


async def bodies(here: World, app: str) -> dict[str, bool]:
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        found = await tx.execute(select(JobRow.id, JobRow.body).where(JobRow.workload == app))
        return {row.id: bool(row.body) for row in found}


async def test_apps_and_organizations(here: World, customer: Customer) -> None:
    first = await customer.create("limited-1")
    await customer.create("limited-2")
    with pytest.raises(Refused, match="at most 2 apps") as refused:
        await customer.create("limited-3")
    assert refused.value.status == 429
    await customer.call("DELETE", f"/api/paas/apps/{first}")
    await customer.create("limited-3")
    await customer.found("second")
    with pytest.raises(Refused, match="at most 2 organizations") as refused:
        await customer.found("third")
    assert refused.value.status == 429


async def test_uploads_are_few_and_the_old_ones_go_at_once(here: World, customer: Customer) -> None:
    app = await customer.create("uploaded")
    for _ in range(4):
        await customer.upload(app, SOURCE)
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        kept = await tx.one(select(func.count()).select_from(SourceRow).where(SourceRow.workload == app))
    assert kept == 2
    with pytest.raises(Refused, match="4 uploads an hour") as refused:
        await customer.upload(app, SOURCE)
    assert refused.value.status == 429


async def test_runs_of_a_schedule(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "scheduled")
    path = f"/api/paas/apps/{app}/cron"
    new = {"schedule": "0 * * * *", "command": "tidy"}
    await customer.call("POST", path, json={**new, "name": "tidy-up"})
    first = (await customer.call("POST", f"{path}/tidy-up/run"))["id"]
    skipped = (await customer.call("POST", f"{path}/tidy-up/run"))["id"]
    assert await bodies(here, app) == {first: True, skipped: False}
    await here.say(ended(await asked(here, app, "cron")))
    assert await bodies(here, app) == {first: False, skipped: False}
    await customer.call("PATCH", f"{path}/tidy-up", json={"overlap": True})
    for _ in range(2):
        await customer.call("POST", f"{path}/tidy-up/run")
    with pytest.raises(Refused, match="2 commands of the app are under way"):
        await customer.call("POST", f"{path}/tidy-up/run")
    here.harness.clock.advance(3_600)
    await tick(here)
    [newest, *_] = (await customer.call("GET", f"{path}/tidy-up/jobs"))["jobs"]
    assert newest["reason"] == "left out: 2 runs before it have not ended yet"
    for job in await bodies(here, app):
        found = await customer.call("GET", f"/api/paas/jobs/{job}")
        assert found["command"] == "tidy"


async def test_commands_in_an_hour(here: World, customer: Customer) -> None:
    app, _ = await here.live(customer, "commanding")
    for number in range(4):
        await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": "ls"})
        await here.say(ended(await asked(here, app, number=number + 1)))
    with pytest.raises(Refused, match="4 commands an hour"):
        await customer.call("POST", f"/api/paas/apps/{app}/run", json={"command": "ls"})


async def test_names_of_processes_that_were_never_scaled_are_not_kept(
    here: World, customer: Customer
) -> None:
    app = await customer.create("renaming")
    await customer.upload(app, SOURCE)
    for number in range(3):
        processes = {"web": "serve", f"worker-{number}": "work"}
        await here.roll_out(await here.build(await customer.deploy(app), processes=processes))
    async with here.host.runtime.store.transaction(PLATFORM) as tx:
        row = await tx.get(WorkloadRow, app)
    assert row is not None
    assert row.chosen == {"web": 1}
