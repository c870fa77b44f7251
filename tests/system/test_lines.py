"""What apps say, from an instance to its customer: kept, told live, and nobody else's."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import orjson
import pytest
from contracts.ids import new_id
from contracts.lines import AGENT, KeepLines, Line, Piece, packed
from gateway import lines
from runtime.permissions import node_name

from tests.customer import Customer, Refused, hello
from tests.gateway.world import door
from tests.harness import Servers, ShiftedClock, eventually
from tests.world import ADMIN, World, world_of


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_of("lines", running, tmp_path_factory) as opened:
        yield opened


@pytest.fixture
async def customer(here: World) -> AsyncIterator[Customer]:
    async with here.customer() as found:
        await found.register(f"{new_id('usr')}@example.org")
        await here.paying(found)
        yield found


@pytest.fixture
async def app(customer: Customer) -> str:
    made, _ = await customer.live(f"talks-{new_id('app')[-8:]}", hello())
    return made


async def instance_of(here: World, app: str) -> str:
    (found,) = await here.engine.instances(app)
    return found.identity.instance


async def page(customer: Customer, app: str, **wanted: Any) -> dict[str, Any]:
    query = "&".join(f"{key}={value}" for key, value in wanted.items())
    found: dict[str, Any] = await customer.call("GET", f"/api/paas/apps/{app}/logs?{query}")
    return found


async def texts(customer: Customer, app: str, **wanted: Any) -> list[str]:
    return [line["text"] for line in (await page(customer, app, **wanted))["lines"]]


async def test_what_an_instance_says_is_kept_in_order_also_when_it_is_gone(
    here: World, customer: Customer, app: str
) -> None:
    first = await instance_of(here, app)
    for number in range(250):
        here.engine.say(first, f"line {number}")
    here.engine.say(first, "\x1b[31mred\x1b[0m")
    line = await customer.said(app, "red")
    assert (line["process"], line["instance"], line["stream"]) == ("web.1", first, "stdout")
    assert await texts(customer, app, lines=2) == ["line 249", "red"]
    assert await texts(customer, app, lines=1, ansi="true") == ["\x1b[31mred\x1b[0m"]

    # A new release: what the old one said stays, and its last words come, too.
    await customer.call("POST", f"/api/paas/apps/{app}/restart")

    async def replaced() -> bool:
        there = await here.engine.instances(app)
        return [one.identity.instance for one in there] != [first] and len(there) == 1

    here.engine.say(first, "last words")
    await eventually(replaced, what="the new instance")
    second = await instance_of(here, app)
    await customer.said(app, f"starting {second}")
    everything = await page(customer, app, lines=1000)
    said = [line["text"] for line in everything["lines"] if line["instance"] == first]
    assert said == [f"starting {first}", *(f"line {n}" for n in range(250)), "red", "last words"]
    assert [line["sequence"] for line in everything["lines"]] == list(range(1, len(said) + 2))
    assert everything["earlier"] is None
    assert everything["next"] == len(said) + 1

    # From page to page, in both directions, nothing is missing and nothing comes twice.
    forward, place = [], 0
    while more := await page(customer, app, after=place, lines=60):
        if not more["lines"]:
            break
        forward += more["lines"]
        place = more["next"]
    assert forward == everything["lines"]
    back: list[dict[str, Any]] = []
    before: int | None = None
    while True:
        more = await page(customer, app, lines=60, **({} if before is None else {"before": before}))
        back = more["lines"] + back
        before = more["earlier"]
        if before is None:
            break
    assert back == everything["lines"]

    # And only what is asked for.
    assert await texts(customer, app, instance=second) == [f"starting {second}"]
    assert await texts(customer, app, search="LINE 24", lines=3) == ["line 247", "line 248", "line 249"]
    assert await texts(customer, app, process="worker") == []
    assert len(await texts(customer, app, process="web", lines=1000)) == len(everything["lines"])
    assert await texts(customer, app, stream="stderr") == []
    late = everything["lines"][-2]["at"]
    expected = [line["text"] for line in everything["lines"] if line["at"] >= late]
    assert await texts(customer, app, since=late) == expected
    assert 0 < len(expected) < 5


async def test_bad_questions_are_told_what_to_do(customer: Customer, app: str) -> None:
    for query, words in (
        ("after=1&before=5", "not both"),
        ("after=-1", "after"),
        ("lines=5000", "lines"),
        ("process=;drop", "process"),
        ("since=yesterday", "since"),
        ("stream=stdin", "stream"),
    ):
        with pytest.raises(Refused) as refused:
            await customer.call("GET", f"/api/paas/apps/{app}/logs?{query}")
        assert refused.value.status == 422
        assert words in str(refused.value)


async def test_nobody_reads_anothers(here: World, customer: Customer, app: str) -> None:
    here.engine.say(await instance_of(here, app), "a secret of ours")
    await customer.said(app, "a secret of ours")
    async with here.customer() as other:
        await other.register(f"{new_id('usr')}@example.org")
        for path in (f"/api/paas/apps/{app}/logs", f"/api/paas/apps/{app}/logs/stream"):
            with pytest.raises(Refused) as refused:
                await other.call("GET", path)
            assert refused.value.status == 404
        with pytest.raises(Refused) as refused:
            await other.call("GET", "/api/admin/paas/nodes/local/logs")
        assert refused.value.status == 403
    # Row by row, not only by the route.
    rows = await here.harness.hosts["gateway"].runtime.store.read(
        "select found.* from (select set_config('berth.organization', %s, true) as o) scope "
        "cross join lateral (select p.subject from piece p where scope.o is not null offset 0) found",
        (new_id("org"),),
    )
    assert rows == []


async def test_a_stream_tells_what_comes_and_goes_on_where_a_client_was(
    here: World, customer: Customer, app: str
) -> None:
    instance = await instance_of(here, app)
    await customer.said(app, f"starting {instance}")
    seen: list[tuple[int, str]] = []
    async with (
        door(here.harness.hosts["gateway"].service) as (_, url),
        httpx.AsyncClient(base_url=url) as client,
    ):
        path = f"/api/paas/apps/{app}/logs/stream"

        async def read(until: str, headers: dict[str, str]) -> None:
            async with client.stream("GET", path, headers={**customer.headers, **headers}) as answer:
                assert answer.status_code == 200
                number = 0
                async for line in answer.aiter_lines():
                    if line.startswith("id: "):
                        number = int(line[4:])
                    elif line.startswith("data: {") and len(line) > 10:
                        seen.append((number, orjson.loads(line[6:])["text"]))
                        if seen[-1][1] == until:
                            return

        async def speak(first: int, last: int) -> None:
            for number in range(first, last):
                here.engine.say(instance, f"live {number}")
                await asyncio.sleep(0.01)

        speaking = asyncio.create_task(speak(0, 60))
        async with asyncio.timeout(20):
            await read("live 40", {})
            await speaking
            here.engine.say(instance, "meanwhile")
            await speak(60, 80)
            await read("live 79", {"Last-Event-ID": str(seen[-1][0])})
    expected = [*(f"live {n}" for n in range(60)), "meanwhile", *(f"live {n}" for n in range(60, 80))]
    assert [text for _, text in seen] == [f"starting {instance}", *expected]
    assert [number for number, _ in seen] == list(range(1, len(seen) + 1))


async def test_a_node_speaks_for_what_it_runs_and_for_nothing_else(
    here: World, customer: Customer, app: str
) -> None:
    local = await here.harness.everybody(node_name("local"))
    await customer.said(app, f"starting {await instance_of(here, app)}")

    def piece(instance: str, workload: str | None, text: str = "forged") -> Piece:
        body = packed([Line(7, "stdout", text)])
        return Piece(
            instance=instance, workload=workload, process="web.1", after=0, upto=7, lines=1, body=body
        )

    stranger = new_id("ins")
    elsewhere = await here.harness.everybody(node_name("elsewhere"))
    answer = await elsewhere.ask(KeepLines(node="elsewhere", pieces=(piece(stranger, app),)))
    assert (answer.kept, answer.refused) == ({}, (stranger,))
    answer = await local.ask(KeepLines(node="local", pieces=(piece(stranger, new_id("app")),)))
    assert answer.refused == (stranger,)
    # Nor does an instance that is known become another app's.
    other, _ = await customer.live(f"other-{new_id('app')[-8:]}", hello())
    mine = await instance_of(here, app)
    answer = await local.ask(KeepLines(node="local", pieces=(piece(mine, other),)))
    assert answer.refused == (mine,)
    assert "forged" not in await texts(customer, app, lines=1000)
    assert "forged" not in await texts(customer, other, lines=1000)


async def test_the_administrator_reads_what_a_node_says(here: World) -> None:
    async with here.customer() as administrator:
        await administrator.log_in(*ADMIN)
        bus = await here.harness.everybody(node_name("edge-9"))
        said = '{"event": "disk is slow"}'
        moment = 1_700_000_000_000_000_000
        body = packed([Line(moment, "stderr", said)])
        spoken = Piece(instance=AGENT, workload=None, process=AGENT, after=0, upto=moment, lines=1, body=body)
        await bus.ask(KeepLines(node="edge-9", pieces=(spoken,)))
        # Again, as when the answer was lost.
        answer = await bus.ask(KeepLines(node="edge-9", pieces=(spoken,)))
        assert answer.kept == {AGENT: moment}
        found = await administrator.call("GET", "/api/admin/paas/nodes/edge-9/logs")
        assert [(line["text"], line["at"]) for line in found["lines"]] == [(said, "2023-11-14T22:13:20Z")]


async def test_lines_are_forgotten_in_time_and_those_of_a_deleted_app_at_once(
    here: World, customer: Customer, app: str
) -> None:
    host = here.harness.hosts["gateway"]
    instance = await instance_of(here, app)
    here.engine.say(instance, "old")
    await customer.said(app, "old")
    desk = host.service.answers[KeepLines].args[0]  # type: ignore[attr-defined]
    later = ShiftedClock()
    later.advance(timedelta(days=8).total_seconds())
    await lines.forget(replace(desk, clock=later))
    assert await texts(customer, app) == []
    here.engine.say(instance, "new")
    # The numbers go on: nobody who follows is told an old one again.
    assert (await customer.said(app, "new"))["sequence"] == 3
    await customer.call("DELETE", f"/api/paas/apps/{app}")

    async def forgotten() -> bool:
        await lines.forget(desk)
        rows = await host.runtime.store.look("select p.subject from piece p where p.subject = %s", (app,))
        return not rows

    await eventually(forgotten, what="the end of its lines")


async def test_an_app_that_says_too_much_keeps_the_newest(here: World, customer: Customer, app: str) -> None:
    desk = here.harness.hosts["gateway"].service.answers[KeepLines].args[0]  # type: ignore[attr-defined]
    instance = await instance_of(here, app)
    for round_ in range(3):
        for number in range(3_000):
            here.engine.say(instance, f"{round_} {number} {new_id('ins')}{new_id('ins')}{new_id('ins')}")
        here.engine.say(instance, f"{round_} end")
        await customer.said(app, f"{round_} end")
    await lines.forget(replace(desk, settings=desk.settings.model_copy(update={"log_mb": 0.25})))
    kept = await texts(customer, app, lines=1000)
    assert kept, await page(customer, app)
    assert kept[-1] == "2 end"
    assert (await page(customer, app, lines=1000, after=0))["lines"][0]["sequence"] > 1000
