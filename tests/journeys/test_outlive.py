"""I6: apps outlive the control plane. With Postgres, NATS and every service stopped, they serve and heal."""

import asyncio
import os
import signal

import docker
import httpx
import pytest

from tests.customer import Customer, hello
from tests.harness import eventually
from tests.platform import ADMIN, platform


async def test_an_app_answers_and_heals_without_the_platform(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with platform(tmp_path_factory.mktemp("outlive"), "outlive") as here, here.customer() as customer:
        await customer.log_in(*ADMIN)
        await customer.found("The operator's own")
        await customer.call(
            "POST", f"/api/admin/organizations/{customer.organization}/credits", json={"amount": "5"}
        )
        app, view = await customer.live("lasting", hello("still here"))
        hostname = httpx.URL(view["url"]).host
        await customer.answers(hostname, "still here")

        here.stop_all()
        here.running.nats.stop()
        here.running.postgres.stop()
        answers = [await customer.visit(hostname) for _ in range(50)]
        assert [a.status_code for a in answers] == [200] * 50

        await asyncio.to_thread(kill_inside, here.containers()[0].id)
        await customer.answers(hostname, "still here", seconds=20)

        await asyncio.to_thread(here.running.postgres.start)
        await asyncio.to_thread(here.running.nats.start)
        here.start("gateway", "builder", "scheduler", "domains", "billing", "node-agent")
        await here.ready()
        found = await eventually(lambda: running_again(customer, app), what="the app's status")
        assert found["url"] == view["url"]
        assert len(here.containers()) == 1
        await customer.answers(hostname, "still here")


async def running_again(customer: Customer, app: str) -> dict[str, str] | None:
    found: dict[str, str] = await customer.call("GET", f"/api/paas/apps/{app}", retry=True)
    return found if found["status"] == "running" else None


def kill_inside(container: str | None) -> None:
    """As the kernel kills a process that took too much: the engine was not asked."""
    assert container is not None
    client = docker.from_env()
    try:
        os.kill(client.containers.get(container).attrs["State"]["Pid"], signal.SIGKILL)
    finally:
        client.close()
