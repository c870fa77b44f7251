"""Whole machines that hand requests to each other, are emptied, lose their power, or have their cable pulled.

In this order: one that has been away twice is given no new work for a while.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import pytest

from tests.customer import Customer
from tests.fleet import REGION, SILENCE, Fleet, Node, fleet
from tests.harness import eventually

# Beyond the silence, for placing, starting and routing it elsewhere.
MOVED = 30.0
RESERVE = 0.9


@pytest.fixture(scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with fleet(tmp_path_factory.mktemp("fleet"), "east", "west") as opened:
        # New work goes to the west; the east is kept for what has lost its node.
        await opened.administrator.call("PATCH", "/api/admin/paas/nodes/east", json={"reserve": RESERVE})
        yield opened


@pytest.fixture
async def customer(here: Fleet) -> AsyncIterator[Customer]:
    async with here.platform.customer() as found:
        await found.register(f"{time.monotonic_ns()}@example.org")
        await here.pay(found)
        yield found


@dataclass
class Visitor:
    """Asks at the ingress of one node all the time, and keeps every answer with its time."""

    here: Fleet
    node: str
    hostname: str
    answers: list[tuple[float, int, str]] = field(default_factory=list)

    async def ask(self) -> None:
        while True:
            status, text = await self.here.ask(self.node, self.hostname)
            self.answers.append((time.monotonic(), status, text))
            await asyncio.sleep(0.05)

    def copies(self, since: float = 0.0) -> set[str]:
        return {text for at, status, text in self.answers if status == 200 and at >= since}


async def settled(here: Fleet, app: str, node: str, copies: int, seconds: float) -> list[str]:
    """Its instances, once they all run there and none runs elsewhere on a machine that is up."""

    async def look() -> list[str] | None:
        found = await asyncio.to_thread(here.homes, app)
        return found[node] if found.keys() == {node} and len(found[node]) == copies else None

    return await eventually(look, seconds=seconds, every=0.2, what=f"{copies} copies in the {node} alone")


@pytest.mark.promise("R17.3")
async def test_a_request_that_enters_at_one_machine_is_answered_by_another(
    here: Fleet, customer: Customer
) -> None:
    app, hostname = await here.live(customer, "far-away", replicas=2)
    await settled(here, app, "west", 2, 10)

    async def even() -> bool:
        found = Counter([await here.ask("east", hostname) for _ in range(10)])
        return set(found.values()) == {5} and {status for status, _ in found} == {200}

    await eventually(even, what="both copies in turn, asked in the east")
    # What runs on a node reaches the ingress of none by the way that is the nodes' own.
    [instance, _] = (await asyncio.to_thread(here.homes, app))["west"]
    for name in ("east", "west"):
        assert not await asyncio.to_thread(connects, here["west"], instance, here[name].address, 7443)
    asked = here["west"].server.tries(
        "curl", "--silent", "--insecure", f"https://{here['east'].address}:7443/"
    )
    assert asked[0] != 0
    await ended(here, customer, app)


def connects(node: Node, instance: str, address: str, port: int) -> bool:
    program = "use IO::Socket::INET; exit(IO::Socket::INET->new(PeerAddr => $ARGV[0], Timeout => 2) ? 0 : 3)"
    label = ["--filter", f"label=berth.instance={instance}"]
    [container] = node.server.run("docker", "ps", "--quiet", *label).split()
    code, said = node.server.tries("docker", "exec", container, "perl", "-e", program, f"{address}:{port}")
    assert code in (0, 3), said
    return code == 0


@dataclass
class Crowd:
    """Visitors who come by one node or by the other, over connections that stay open."""

    here: Fleet
    hostname: str
    answered: int = 0
    failed: list[tuple[str, int, str]] = field(default_factory=list)
    copies: set[str] = field(default_factory=set)
    ended: bool = False

    async def ask(self, node: str) -> None:
        url = f"http://{self.here[node].address}/"
        async with httpx.AsyncClient(timeout=10, headers={"Host": self.hostname}) as client:
            while not self.ended:
                try:
                    answer = await client.get(url)
                except httpx.TransportError as error:
                    self.failed.append((node, 0, repr(error)))
                    continue
                if answer.status_code == 200:
                    self.copies.add(answer.text)
                    self.answered += 1
                else:
                    self.failed.append((node, answer.status_code, answer.text))


async def test_a_node_is_emptied_under_load_without_a_failed_request(here: Fleet, customer: Customer) -> None:
    app, hostname = await here.live(customer, "moving", replicas=2)
    await settled(here, app, "west", 2, 10)
    path = "/api/admin/paas/nodes"
    await here.administrator.call("PATCH", f"{path}/east", json={"reserve": 0})
    before = {(await here.ask("west", hostname))[1] for _ in range(20)}
    crowd = Crowd(here, hostname)
    asking = [asyncio.create_task(crowd.ask(node)) for node in ("east", "west") * 2]
    await here.administrator.call("POST", f"{path}/west/drain")
    try:
        await settled(here, app, "east", 2, 60)
        enough = crowd.answered + 200

        async def more() -> bool:
            return crowd.answered >= enough

        await eventually(more, seconds=30, what="more requests")
    finally:
        crowd.ended = True
        await asyncio.gather(*asking)
    assert crowd.failed == []
    # It was asked before, while and after it moved.
    assert crowd.copies & before
    assert crowd.copies - before
    node = (await here.view("west"))["node"]
    assert (node["draining"], node["placements"]) == (True, 0), node
    await here.administrator.call("POST", f"{path}/west/enable")
    await here.administrator.call("PATCH", f"{path}/east", json={"reserve": RESERVE})
    await ended(here, customer, app)


@pytest.mark.promise("P4", "R19.4")
async def test_what_ran_on_a_dead_node_runs_elsewhere_and_never_twice(
    here: Fleet, customer: Customer
) -> None:
    app, hostname = await here.live(customer, "shop", replicas=2)
    before = await settled(here, app, "west", 2, 10)
    assert (await here.ask("west", hostname))[0] == 200

    await asyncio.to_thread(here["west"].kill)
    dead = time.monotonic()

    async def serves() -> bool:
        return (await here.ask("east", hostname))[0] == 200

    await eventually(serves, seconds=SILENCE + MOVED, every=0.1, what="the app in the east")
    # Not before the silence was long enough; and into the reserve, which new work does not get.
    assert time.monotonic() - dead > SILENCE - 2
    after = await settled(here, app, "east", 2, 10)
    view = await customer.status(app, "running")
    told = (await customer.call("GET", f"/api/paas/apps/{app}/activity"))["activity"]
    assert (told[0]["kind"], told[0]["words"]) == (
        "moved",
        "west went offline; what ran there starts on east",
    )
    late = await customer.create("late", region=REGION)
    await here.deploy(customer, late)
    blocked = await blocked_words(customer, late)
    assert "east: CPU short" in blocked
    assert "beside the reserve for failover" in blocked
    assert "west: offline" in blocked

    # The power is back, and with it, for a moment, what ran there: until the agent has read what is wanted.
    await asyncio.to_thread(here["west"].power)
    visitor = Visitor(here, "west", hostname)
    asking = asyncio.create_task(visitor.ask())
    await asyncio.to_thread(here["west"].boot)
    await settled(here, app, "east", 2, 30)
    fenced = time.monotonic()
    await here.status("west", "online")
    # What waited for capacity takes it.
    await customer.status(late, "running")
    await asyncio.sleep(2)
    asking.cancel()
    east = {(await here.ask("east", hostname))[1] for _ in range(40)}
    assert len(east) == 2
    assert visitor.copies(since=fenced) <= east
    assert set(await settled(here, app, "east", 2, 1)) == set(after)
    assert not set(before) & set(after)
    assert view["id"] == app
    await ended(here, customer, app, late)


async def ended(here: Fleet, customer: Customer, *apps: str) -> None:
    """The next one needs their room."""
    for app in apps:
        await customer.call("DELETE", f"/api/paas/apps/{app}")

    async def given_back() -> bool:
        views = [(await here.view(name))["node"] for name in here.nodes]
        return all(view["placements"] == 0 for view in views)

    await eventually(given_back, seconds=30, every=0.2, what="room")


async def blocked_words(customer: Customer, app: str) -> str:
    async def look() -> str | None:
        view = await customer.call("GET", f"/api/paas/apps/{app}")
        return str(view["reason"]) if "no node has room" in str(view["reason"]) else None

    return await eventually(look, what="why it is blocked")


@pytest.mark.promise("P4")
async def test_a_node_that_is_only_cut_off_serves_on_and_gives_way_when_it_is_back(
    here: Fleet, customer: Customer
) -> None:
    app, hostname = await here.live(customer, "cut-off", replicas=2)
    await settled(here, app, "west", 2, 10)
    await asyncio.to_thread(here["west"].cut)

    async def moved() -> bool:
        assert await asyncio.to_thread(here["west"].answers_inside, hostname)
        return (await here.ask("east", hostname))[0] == 200

    await eventually(moved, seconds=SILENCE + MOVED, every=0.2, what="the app in the east")
    # Nobody has told the machine anything: its apps outlive the way to it.
    assert await asyncio.to_thread(here["west"].answers_inside, hostname)
    assert len(await asyncio.to_thread(here["west"].containers, app)) == 2

    await asyncio.to_thread(here["west"].heal)
    # TCP tries again after as long as the way was cut, if the agent does not give it up first.
    await settled(here, app, "east", 2, 45)
    east = {(await here.ask("east", hostname))[1] for _ in range(20)}
    west = [await here.ask("west", hostname) for _ in range(20)]
    assert {text for status, text in west if status == 200} <= east
    await here.status("west", "online")
    await ended(here, customer, app)
