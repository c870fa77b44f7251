"""The whole of billing on a real bus: events in, charges and the wallet's changes out, by two replicas."""

from datetime import UTC, datetime, timedelta

from contracts.events import BillingTick, WalletChanged
from contracts.ids import new_id
from contracts.money import Money, charge_until
from contracts.queries import AllNodes, NodeInfo, Nodes, StatementOf, Wallet, WalletOf
from contracts.reports import NodeCapacity, NodeUsage

from tests.billing.samples import RATE, granted, started, stopped
from tests.harness import Harness, eventually

HOUR = timedelta(hours=1)


def node(last_seen_at: datetime | None, status: str) -> NodeInfo:
    nothing = {"cpu_millis": 0, "memory_mb": 0, "disk_mb": 0}
    return NodeInfo.model_validate(
        {
            "name": "local",
            "region": "local",
            "status": status,
            "last_seen_at": last_seen_at,
            "capacity": NodeCapacity(**nothing),
            "allocated": NodeUsage(**nothing, load=0),
            "used": NodeUsage(**nothing, load=0),
            "instances": 0,
            "engine": "docker",
        }
    )


async def test_an_instance_is_metered_charged_and_stopped(harness: Harness) -> None:
    await harness.start("billing")
    await harness.start("billing", alias="second")
    bus, org = await harness.everybody(), new_id("org")
    credit = granted(org, 10_000_000)
    await harness.publish(credit)
    await harness.publish_again(credit)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    first = started(org, hour - HOUR)
    # The stop of the old instance arrives before its start, which is late.
    before = started(org, hour - 2 * HOUR, workload=first.workload)
    await harness.publish(first, stopped(before, hour - HOUR), before)
    await harness.publish_again(first)

    async def charged() -> WalletChanged | None:
        found = await harness.events(WalletChanged)
        return next((e for e in found if e.balance.micros == 10_000_000 - 2 * RATE.micros_per_hour), None)

    await eventually(charged, what="two hours charged")
    harness.clock.advance(3600)
    for host in harness.hosts.values():
        next(loop for loop in host.service.loops if loop.name == "periods").nudge()

    async def third_hour() -> bool:
        statement = await bus.ask(StatementOf(organization=org))
        return sum(c.seconds for c in statement.charges) == 3 * 3600

    await eventually(third_hour, what="the third hour charged")
    await harness.publish(stopped(first, hour + HOUR))
    for tick in await harness.events(BillingTick):
        await harness.publish_again(tick)
    await harness.settle()
    wallet = await bus.ask(WalletOf(organization=org))
    left = Money(micros=10_000_000 - 3 * RATE.micros_per_hour, currency="USD")
    assert wallet == Wallet(organization=org, balance=left, accrued=Money(micros=0, currency="USD"))
    sequences = [e.sequence for e in await harness.events(WalletChanged)]
    assert sorted(sequences) == list(range(1, len(sequences) + 1))
    ticks = await harness.events(BillingTick)
    assert len({tick.id for tick in ticks}) == len({tick.period_start for tick in ticks}) == 2


async def test_a_node_nobody_hears_is_charged_to_its_last_word(harness: Harness) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    nodes = [node(now - timedelta(seconds=300), "offline")]

    async def answer(question: AllNodes) -> Nodes:
        if question.after is None:
            # There are more nodes than one answer holds.
            return Nodes(nodes=(), next="n0")
        return Nodes(nodes=tuple(nodes))

    await harness.answers(AllNodes, answer)
    host = await harness.start("billing")
    silence = next(loop for loop in host.service.loops if loop.name == "silence")
    bus, org = await harness.everybody(), new_id("org")
    first = started(org, now - timedelta(seconds=1000))
    await harness.publish(first)
    await harness.settle()

    async def used() -> int:
        wallet = await bus.ask(WalletOf(organization=org))
        return wallet.accrued.micros - wallet.balance.micros

    silence.nudge()

    async def capped() -> bool:
        return await used() == charge_until(RATE, 700)

    await eventually(capped, what="the meter stopped")
    harness.clock.advance(10_000)
    assert await used() == charge_until(RATE, 700)
    # It was alive all the time, and says so when it is back.
    nodes[0] = node(now, "online")
    silence.nudge()

    async def goes_on() -> bool:
        return await used() >= charge_until(RATE, 11_000)

    await eventually(goes_on, what="the meter runs again")
    await harness.publish(stopped(first, now + timedelta(seconds=10), reason="stopped"))

    async def final() -> bool:
        return await used() == charge_until(RATE, 1010)

    await eventually(final, what="charged to the true stop")


async def test_a_node_nobody_knows_is_charged_no_further(harness: Harness) -> None:
    """Its removal was told and not heard: its machine is spoken of by nobody any more."""
    now = datetime.now(UTC).replace(microsecond=0)
    nodes: list[NodeInfo] = []

    async def answer(_: AllNodes) -> Nodes:
        return Nodes(nodes=tuple(nodes))

    await harness.answers(AllNodes, answer)
    host = await harness.start("billing")
    silence = next(loop for loop in host.service.loops if loop.name == "silence")
    bus, org = await harness.everybody(), new_id("org")
    await harness.publish(started(org, now - timedelta(seconds=1000)))
    await harness.settle()

    async def used() -> int:
        wallet = await bus.ask(WalletOf(organization=org))
        return wallet.accrued.micros - wallet.balance.micros

    await silence.work()
    so_far = await used()
    assert so_far >= charge_until(RATE, 1000)
    harness.clock.advance(10_000)
    await silence.work()
    assert await used() <= so_far + charge_until(RATE, 60)
    # It was only not known yet.
    nodes.append(node(now, "online"))
    await silence.work()
    assert await used() >= charge_until(RATE, 11_000)
