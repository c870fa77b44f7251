"""A terminal from a customer to a process, through the API's real door, the bus and the agent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from contracts import sessions
from contracts.ids import new_id
from nats.aio.msg import Msg
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.customer import Customer, Refused, hello
from tests.gateway.world import door
from tests.harness import Servers, eventually
from tests.world import World, world_of


@pytest.fixture(scope="module")
async def here(running: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world_of("terminals", running, tmp_path_factory) as opened:
        yield opened


@pytest.fixture(scope="module")
async def address(here: World) -> AsyncIterator[str]:
    async with door(here.harness.hosts["gateway"].service) as (_, url):
        yield url.replace("http:", "ws:")


@pytest.fixture(scope="module")
async def customer(here: World) -> AsyncIterator[Customer]:
    async with here.customer() as found:
        await found.register(f"{new_id('usr')}@example.org")
        await here.paying(found)
        yield found


@pytest.fixture(scope="module")
async def app(customer: Customer) -> str:
    made, _ = await customer.live("talks", hello())
    return made


def at(address: str, ticket: Any) -> str:
    return f"{address}{ticket['path']}?ticket={ticket['ticket']}"


async def said(socket: ClientConnection) -> tuple[str, dict[str, Any] | None]:
    """Everything until the end, and the end."""
    text = b""
    async for frame in socket:
        assert isinstance(frame, bytes)
        if frame[:1] == sessions.ENDED:
            return text.decode(), json.loads(frame[1:])
        text += frame[1:]
    return text.decode(), None


async def refused(url: str) -> str:
    with pytest.raises(ConnectionClosed) as closed:
        async with connect(url) as socket:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 4403
    return closed.value.rcvd.reason


async def test_a_process_inside_an_instance_is_talked_to(customer: Customer, app: str, address: str) -> None:
    path = f"/api/paas/apps/{app}/exec"
    ticket = await customer.call("POST", path, json={"command": ["env DYNO; cat; exit 7"]})
    async with connect(at(address, ticket)) as socket:
        await socket.send(sessions.size(40, 120))
        await socket.send(sessions.INPUT + b"hello there\n")
        await socket.send(sessions.END_OF_INPUT)
        assert await said(socket) == ("web.1\nhello there\n", {"exit_code": 7, "words": "exit code 7"})
    # It opens one session, once.
    assert "is used" in await refused(at(address, ticket))
    with pytest.raises(Refused) as unknown:
        await customer.call("POST", path, json={"instance": "web.9"})
    assert unknown.value.status == 409


async def test_a_frame_of_text_ends_it_with_the_reason(customer: Customer, app: str, address: str) -> None:
    ticket = await customer.call("POST", f"/api/paas/apps/{app}/exec", json={"command": ["cat"]})
    async with connect(at(address, ticket)) as socket:
        await socket.send("ls")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.reason == "a frame of text came; every frame is binary"


async def test_more_than_fits_is_sent_as_it_is_read(customer: Customer, app: str, address: str) -> None:
    ticket = await customer.call("POST", f"/api/paas/apps/{app}/exec", json={"command": ["cat"]})
    sent = b"x" * 30_000
    async with connect(at(address, ticket), max_size=None) as socket:
        for _ in range(20):
            await socket.send(sessions.INPUT + sent)
        await socket.send(sessions.END_OF_INPUT)
        text, end = await said(socket)
    assert len(text) == 600_000
    assert end == {"exit_code": 0, "words": None}


async def test_who_reads_later_is_waited_for(customer: Customer, app: str, address: str) -> None:
    """With no more in memory than is under way."""
    ticket = await customer.call("POST", f"/api/paas/apps/{app}/exec", json={"command": ["sleep 1; cat"]})
    async with connect(at(address, ticket), max_size=None) as socket:
        for _ in range(60):
            await socket.send(sessions.INPUT + b"x" * 50_000)
        await socket.send(sessions.END_OF_INPUT)
        text, end = await said(socket)
    assert len(text) == 3_000_000
    assert end == {"exit_code": 0, "words": None}


async def test_who_leaves_a_process_that_never_reads_is_noticed(
    here: World, customer: Customer, app: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read of him then, not even that he has left."""
    monkeypatch.setattr(sessions, "ALIVE_SECONDS", 0.3)
    told: list[bytes] = []

    async def heard(message: Msg) -> None:
        told.append(message.data)

    client = (await here.harness.everybody()).client
    subscription = await client.subscribe(sessions.to_node("*", "*"), cb=heard)
    await client.flush()
    ticket = await customer.call("POST", f"/api/paas/apps/{app}/exec", json={"command": ["sleep 1000"]})
    async with connect(at(address, ticket), close_timeout=0.1) as socket:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                for _ in range(300):
                    await socket.send(sessions.INPUT + b"x" * 50_000)
        assert sessions.HANG_UP not in told
        # What keeps the connection open is no output of the process.
        assert await socket.recv() == sessions.OUTPUT
        socket.transport.abort()

    async def hung_up() -> bool:
        return sessions.HANG_UP in told

    await eventually(hung_up, what="the end of the session")
    assert sum(map(len, told)) < 2_000_000
    await subscription.unsubscribe()


@pytest.mark.promise("R12.3")
async def test_a_command_with_a_terminal_runs_in_a_container_of_its_own(
    here: World, customer: Customer, app: str, address: str
) -> None:
    body = {"command": "env DYNO; cat; exit 3", "attached": True}
    made = await customer.call("POST", f"/api/paas/apps/{app}/run", json=body)
    async with connect(at(address, made["ticket"])) as socket:
        await socket.send(sessions.INPUT + b"typed\n")
        await socket.send(sessions.END_OF_INPUT)
        assert await said(socket) == ("run.1\ntyped\n", {"exit_code": 3, "words": "exit code 3"})

    async def over() -> Any:
        found = await customer.call("GET", f"/api/paas/jobs/{made['job']['id']}")
        return found if found["finished_at"] else None

    job = await eventually(over, what="the end of the job")
    assert (job["status"], job["exit_code"]) == ("failed", 3)


async def test_a_command_ends_with_its_terminal(
    here: World, customer: Customer, app: str, address: str
) -> None:
    made = await customer.call(
        "POST", f"/api/paas/apps/{app}/run", json={"command": "cat; sleep 1000", "attached": True}
    )
    async with connect(at(address, made["ticket"])) as socket:
        await socket.send(sessions.INPUT + b"here\n")
        assert await socket.recv() == sessions.OUTPUT + b"here\n"

    async def over() -> Any:
        found = await customer.call("GET", f"/api/paas/jobs/{made['job']['id']}")
        return found if found["finished_at"] else None

    job = await eventually(over, what="the end of the job")
    assert (job["status"], job["reason"]) == ("cancelled", "its terminal was closed")


async def test_a_ticket_is_for_one_workload_one_verb_and_one_moment(
    here: World, customer: Customer, app: str, address: str
) -> None:
    path = f"/api/paas/apps/{app}/exec"

    async def fresh() -> Any:
        return await customer.call("POST", path, json={"command": ["cat"]})

    ticket = await fresh()
    other_verb = {**ticket, "path": ticket["path"].replace("/exec/", "/run/")}
    assert "something else" in await refused(at(address, other_verb))
    ticket = await fresh()
    other_app = {**ticket, "path": ticket["path"].replace(app, new_id("app"))}
    assert "something else" in await refused(at(address, other_app))
    assert "is used" in await refused(at(address, {**ticket, "ticket": "guessed"}))
    ticket = await fresh()
    here.harness.clock.advance(61)
    assert "has expired" in await refused(at(address, ticket))
    async with here.customer() as stranger:
        await stranger.register(f"{new_id('usr')}@example.org")
        with pytest.raises(Refused) as unknown:
            await stranger.call("POST", path, json={"command": ["cat"]})
        assert unknown.value.status == 404
