"""Names of hosts that answer late, or never, keep nobody waiting but those who asked for them."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from contracts.errors import QuotaExceeded, Unavailable
from gateway.names import Names


class Resolver:
    def __init__(self) -> None:
        self.answers = threading.Event()

    def resolve(self, host: str, port: int) -> list[str]:
        if host.startswith("slow"):
            self.answers.wait(30)
        return [f"192.0.2.{port}"]


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    made = Resolver()
    yield made
    made.answers.set()


async def test_one_that_is_not_answered_for_is_given_up(resolver: Resolver) -> None:
    names = Names(resolver.resolve, patience=0.1)
    with pytest.raises(Unavailable, match=r"where slow\.example\.org is"):
        await names.addresses("org_1", "slow.example.org", 22)
    assert await names.addresses("org_1", "git.example.org", 22) == ["192.0.2.22"]
    names.end()


async def test_nobody_has_all_of_the_look_ups(resolver: Resolver) -> None:
    names = Names(resolver.resolve, patience=0.1)
    asked = [names.addresses("org_1", "slow.example.org", 22) for _ in range(16)]
    refused = await asyncio.gather(*asked, return_exceptions=True)
    # Given up, the two are still under way at the resolver.
    assert [type(error) for error in refused] == [Unavailable] * 2 + [QuotaExceeded] * 14
    with pytest.raises(QuotaExceeded):
        await names.addresses("org_1", "git.example.org", 22)
    assert await names.addresses("org_2", "git.example.org", 22) == ["192.0.2.22"]
    resolver.answers.set()
    await asyncio.sleep(0.1)
    assert await names.addresses("org_1", "git.example.org", 22) == ["192.0.2.22"]
    names.end()


async def test_who_asks_for_many_at_once_waits_for_his_turn() -> None:
    def resolve(host: str, port: int) -> list[str]:
        time.sleep(0.02)
        if port == 23:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [f"192.0.2.{port}"]

    names = Names(resolve)
    asked = [names.addresses("org_1", "git.example.org", 22 + number % 3) for number in range(12)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [one for one in found if isinstance(one, list)] == [["192.0.2.22"], ["192.0.2.24"]] * 4
    assert [type(one) for one in found if not isinstance(one, list)] == [socket.gaierror] * 4
    names.end()


async def test_the_rest_of_the_process_looks_names_up_meanwhile(resolver: Resolver) -> None:
    names = Names(resolver.resolve, patience=1)
    slow = [asyncio.create_task(names.addresses(f"org_{n}", "slow.example.org", 22)) for n in range(16)]
    await asyncio.sleep(0.1)
    begun = time.monotonic()
    await asyncio.get_running_loop().getaddrinfo("localhost", 22)
    assert time.monotonic() - begun < 0.5
    assert {type(error) for error in await asyncio.gather(*slow, return_exceptions=True)} == {Unavailable}
    names.end()
