"""Work on several nodes, as it is ordered and seen through the API."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from contracts.workload import NodeWorkload

from tests.customer import Customer, Refused, archive
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


LIMITS = {
    "cpu_millis": 1000,
    "cpu_request_millis": 500,
    "memory_mb": 2048,
    "memory_request_mb": 512,
    "disk_mb": 64,
}
BURSTABLE = {
    "name": "burstable",
    "title": "Burstable",
    "limits": LIMITS,
    "max_replicas": 20,
    "hourly": "0.01",
    "monthly": "5",
}


@pytest.mark.promise("K5")
async def test_as_much_is_promised_as_requests_and_reserve_leave_and_the_reserve_takes_over_a_lost_node(
    here: World, administrator: Customer, customer: Customer, tmp_path: Path
) -> None:
    beyond = {**BURSTABLE, "limits": {**LIMITS, "memory_request_mb": 4096}}
    with pytest.raises(Refused, match="the part of memory_mb that is promised: give at most 2048"):
        await administrator.call("POST", "/api/admin/paas/plans", json=beyond)
    await administrator.call("POST", "/api/admin/paas/plans", json=BURSTABLE)
    names = ("n1", "n2", "n3")
    for name in names:
        change = {"oversubscribe_cpu": 4, "oversubscribe_memory": 4, "reserve": 0.35}
        await join(here, administrator, tmp_path, name, **change)

    async def promised() -> dict[str, int]:
        """CPU, as the API shows it."""
        views = (await administrator.call("GET", "/api/admin/paas/nodes"))["nodes"]
        return {view["name"]: view["allocated"]["cpu_millis"] for view in views if view["name"] in names}

    # 2000 x 4 x 0.65 / 500 = 10.4, and 2048 x 4 x 0.65 / 512 = 10.4: so ten on each, and not one more.
    apps = []
    for number in range(3):
        app, _ = await customer.live(f"app-{number}", SOURCE, region=REGION, plan="burstable", replicas=10)
        apps.append(app)
        assert sorted((await instances(here, app)).values()) == [0, 0, 0, 10]
    assert await promised() == dict.fromkeys(names, 5000)
    more = await customer.create("one-more", region=REGION, plan="burstable")
    deployment = await customer.deploy(more, SOURCE)

    async def blocked() -> str | None:
        found = await customer.call("GET", f"/api/paas/deployments/{deployment}")
        return str(found["reason"]) if found["status"] == "blocked" else None

    reason = await eventually(blocked, what="a blocked deployment")
    short = "CPU short by 0.3 cores, memory short by 307 MB beside the reserve for failover"
    assert reason == "no node has room: " + "; ".join(f"{name}: {short}" for name in names)
    # What an instance may use is not what is promised.
    [blueprint, *_] = here.engines["n1"].blueprints()
    assert (blueprint.limits.cpu_millis, blueprint.limits.memory_mb) == (1000, 2048)

    # 2000 x 4 - 5000 leaves six instances of reserve on each of the others.
    [lost] = [name for name, number in (await instances(here, apps[2])).items() if number]
    await here.harness.stop(lost)
    others = {name: engine for name, engine in here.engines.items() if name not in (lost, "local")}

    async def taken_over() -> bool:
        found = [len(await engine.instances(apps[2])) for engine in others.values()]
        return sum(found) == 10

    await eventually(taken_over, seconds=40, what="the lost node's work elsewhere")
    now = await promised()
    assert sum(now[name] for name in others) == 15_000
    assert all(5200 < now[name] <= 8000 for name in others)
    assert await blocked() is not None
    told = (await customer.call("GET", f"/api/paas/apps/{apps[2]}/activity"))["activity"]
    assert f"{lost} went offline; what ran there starts on" in told[0]["words"]


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
