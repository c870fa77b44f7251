"""Work on several nodes, as it is ordered and seen through the API."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from contracts.workload import NodeWorkload

from tests.customer import Customer, archive
from tests.harness import Harness, eventually
from tests.world import ADMIN, Gauge, World, world

SOURCE = archive({"Dockerfile": "FROM berth/python:3.11\nEXPOSE 8000\n"})
REGION = "edge"
# Silent for so long, a node is offline.
SILENCE = 6


@pytest.fixture
async def here(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setenv("SCHEDULER_OFFLINE_SECONDS", str(SILENCE))
    async with world(harness, tmp_path) as opened:
        yield opened
        await harness.close_services()


@pytest.fixture
async def administrator(here: World) -> AsyncIterator[Customer]:
    async with here.customer() as found:
        await found.log_in(*ADMIN)
        yield found


@pytest.fixture
async def customer(here: World) -> AsyncIterator[Customer]:
    async with here.customer() as found:
        await found.register("somebody@example.org")
        await here.paying(found)
        yield found


async def join(here: World, administrator: Customer, folder: Path, name: str, **change: Any) -> None:
    """A node with two cores and two gigabytes, once the platform knows of it."""
    machine = folder / f"machine-{name}"
    machine.mkdir()
    await here.join(name, region=REGION, machine=Gauge(machine, cpu_millis=2000, memory_mb=2048).machine)
    path = f"/api/admin/paas/nodes/{name}"

    async def known() -> bool:
        nodes = (await administrator.call("GET", "/api/admin/paas/nodes"))["nodes"]
        return name in {node["name"] for node in nodes}

    await eventually(known, what=name)
    if change:
        await administrator.call("PATCH", path, json=change)


async def instances(here: World, app: str) -> dict[str, int]:
    """How many run on each node's engine."""
    return {name: len(await engine.instances(app)) for name, engine in here.engines.items()}


@pytest.mark.promise("R7.2")
async def test_a_deployment_is_ordered_of_the_node_that_was_selected_and_of_no_other(
    here: World, administrator: Customer, customer: Customer, tmp_path: Path
) -> None:
    names = ("n1", "n2", "n3")
    for name in names:
        await join(here, administrator, tmp_path, name)
    bus = await here.harness.everybody()
    chosen = set()
    for app_name in ("one", "two", "three"):
        app, _ = await customer.live(app_name, SOURCE, region=REGION)
        views = {n: await administrator.call("GET", f"/api/admin/paas/nodes/{n}") for n in names}
        [selected] = [n for n, view in views.items() if app in {p["workload"] for p in view["placements"]}]
        chosen.add(selected)
        assert await instances(here, app) == {name: int(name == selected) for name in here.engines}
        tasks = {
            key: NodeWorkload.model_validate_json(entry.value)
            for key in await bus.bucket("desired").keys()
            if key.endswith(f".{app}") and (entry := await bus.bucket("desired").get(key)) is not None
        }
        assert set(tasks) == {f"{selected}.{app}"}
        [task] = tasks.values()
        assert (task.node, task.spec.id, len(task.slots)) == (selected, app, 1)
        # The next one goes there as well: to the release that runs already.
        made = {name: engine.count("create") for name, engine in here.engines.items()}
        ended = await customer.ended(await customer.deploy(app))
        assert ended["status"] == "running", ended
        now = {name: engine.count("create") for name, engine in here.engines.items()}
        assert now == {**made, selected: made[selected] + 1}
    # It was a choice: not always the same.
    assert chosen == set(names)
    # Of another region.
    assert here.engine.count("create") == 0
