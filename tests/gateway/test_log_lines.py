"""Lines on their way to a reader: colours for who asks, and a burst that one reader cannot keep up with."""

import json
from typing import Any

import pytest
from contracts.ids import new_id
from contracts.reports import BuildLog, LogLine

from tests.customer import Customer
from tests.gateway.reader import Reader, building, end, saw
from tests.gateway.world import World, line

COLOURED = "\x1b[1;31mred\x1b[0m and \x1b]8;;https://example.org\x07a link\x1b]8;;\x07 \x1b"


async def say(here: World, deployment: str, *lines: LogLine) -> None:
    report = BuildLog(build=new_id("bld"), deployment=deployment, lines=lines)
    await here.harness.client.publish(report.subject(), report.model_dump_json().encode())


async def texts(customer: Customer, deployment: str, more: str) -> list[str]:
    path, found = f"/api/paas/deployments/{deployment}/log/stream{more}", []
    async with customer.client.stream("GET", path, headers=customer.headers, timeout=20) as response:
        async for part in response.aiter_lines():
            if part.startswith("data: ") and "sequence" in part:
                found.append(json.loads(part[6:])["text"])
    return found


@pytest.mark.promise("R8.2")
@pytest.mark.parametrize(("more", "shown"), [("", "red and a link "), ("?ansi=1", COLOURED)])
async def test_colours_are_for_who_asks(here: World, customer: Customer, more: str, shown: str) -> None:
    deployment = await building(here, customer, f"coloured-{len(more)}")
    coloured = line(1).model_copy(update={"text": COLOURED})
    here.parts.logs[deployment].append(coloured)
    page = await customer.call("GET", f"/api/paas/deployments/{deployment}/log{more}")
    assert [found["text"] for found in page["lines"]] == [shown]
    reader = Reader(customer, deployment)
    reader.path += more
    heard: list[Any] = []
    async with reader.reading():
        await saw(reader, 1)
        await say(here, deployment, coloured.model_copy(update={"sequence": 2}))
        here.parts.logs[deployment].append(coloured.model_copy(update={"sequence": 2}))
        await saw(reader, 2)
        await end(here, deployment)
    heard = await texts(customer, deployment, more)
    assert heard == [shown, shown]


async def test_a_burst_too_large_to_wait_is_read_from_the_store(
    here: World, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.logs._WAITING", 2)
    deployment = await building(here, customer, "burst")
    reader = Reader(customer, deployment)
    async with reader.reading():
        await here.log(deployment, 1)
        await saw(reader, 1)
        for first in range(2, 3002, 20):
            lines = tuple(line(number) for number in range(first, first + 20))
            here.parts.logs[deployment].extend(lines)
            await say(here, deployment, *lines)
        await here.harness.client.flush()
        await saw(reader, 3001)
        await end(here, deployment)
    assert reader.seen == list(range(1, 3002))
