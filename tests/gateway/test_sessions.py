"""The customer's end of a terminal, with a node of the test's own."""

import asyncio
from typing import Any

from contracts import sessions
from contracts.ids import new_id
from contracts.sessions import Open, Opened
from contracts.workload import Slot
from gateway.sessions import Relay
from gateway.tickets import Target
from nats.aio.msg import Msg

from tests.gateway.world import World
from tests.harness import eventually


class Browser:
    """One that reads nothing for a moment, and says nothing."""

    def __init__(self) -> None:
        self.read: list[bytes] = []

    async def send_bytes(self, frame: bytes) -> None:
        if not self.read:
            await asyncio.sleep(0.5)
        self.read.append(frame)

    async def receive_bytes(self) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def close(self, code: int, reason: str) -> None:
        assert (code, reason) == (1000, "")


async def test_however_little_a_process_says_at_a_time_all_of_it_arrives(here: World) -> None:
    """As much may be under way as the window has room for, in pieces of a byte."""
    client = here.harness.client
    said = [sessions.OUTPUT + bytes([48 + number % 10]) for number in range(10_000)]
    told: list[bytes] = []

    async def heard(message: Msg) -> None:
        told.append(message.data)
        if message.reply:
            await client.publish(message.reply, Opened(tells=True).model_dump_json().encode())
            subject = sessions.from_node("local", message.subject.rpartition(".")[2])
            for frame in (*said, sessions.ENDED + b"{}"):
                await client.publish(subject, frame)

    subscription = await client.subscribe(sessions.to_node("local", "*"), cb=heard)
    await client.flush()
    desk: Any = here.host.service.http.state.desk  # type: ignore[union-attr]
    browser: Any = Browser()
    opens = Open(
        verb="exec",
        workload=new_id("app"),
        organization=new_id("org"),
        slot=Slot(process="web", index=0),
        command=["cat"],
    )

    async def arrived() -> bool:
        frames = [frame[1:] for frame in told if frame[:1] == sessions.ARRIVED]
        return sum(int.from_bytes(frame, "big") for frame in frames) == len(said)

    try:
        async with asyncio.timeout(20):
            await Relay(desk, browser, "local").carry(Target(opens=opens, node="local"))
        await eventually(arrived, what="the word of it")
    finally:
        await subscription.unsubscribe()
    assert browser.read == [*said, sessions.ENDED + b"{}"]
