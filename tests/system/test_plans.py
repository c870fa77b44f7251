"""An app's plan, from the customer's choice to what the wallet is charged."""

from collections.abc import AsyncIterator

import pytest

from tests.customer import archive
from tests.harness import Servers, eventually
from tests.world import ADMIN, World, world_of

SOURCE = archive({"Dockerfile": 'FROM berth/python:3.11\nCMD ["python3", "app.py"]\n', "app.py": ""})


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_of("plans", running, tmp_path_factory) as opened:
        yield opened


@pytest.mark.promise("R18.2")
async def test_a_dearer_plan_of_the_same_size_is_charged_from_the_switch_on(here: World) -> None:
    async with here.customer() as admin, here.customer() as customer:
        await customer.register("dearer@example.org")
        await here.paying(customer)
        await admin.log_in(*ADMIN)
        plans = {p["name"]: p for p in (await customer.call("GET", "/api/paas/plans"))["plans"]}
        body = {
            "name": "small-gold",
            "title": "Small with a call at night",
            "limits": plans["small"]["limits"],
            "max_replicas": 2,
            "hourly": "36.00",
            "monthly": "1.00",
        }
        await admin.call("POST", "/api/admin/paas/plans", json=body)
        app, _ = await customer.live("dearer", SOURCE)
        (before,) = await here.engine.instances(app)
        await customer.call("PUT", f"/api/paas/apps/{app}/plan", json={"plan": "small-gold"})

        async def replaced() -> bool:
            found = [i.identity.instance for i in await here.engine.instances(app)]
            return len(found) == 1 and found != [before.identity.instance]

        await eventually(replaced, what="an instance at the new rate")

        async def charged() -> bool:
            wallet = await customer.call("GET", "/api/paas/wallet")
            return bool(wallet["accrued"]["micros"] > plans["small"]["hourly"]["micros"])

        await eventually(charged, what="more in seconds than the old plan costs an hour")
