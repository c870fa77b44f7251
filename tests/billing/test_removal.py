"""A node that is taken out ends the meters of what ran on it, whatever is told in whatever order."""

import itertools

import pytest
from contracts.events import InstanceStarted, InstanceStopped, NodeRemoved
from contracts.ids import new_id

from tests.billing.samples import Biller, at, started, stopped

ORDERS = list(itertools.permutations(range(3)))


def removed(seconds: float, heard: float) -> NodeRemoved:
    return NodeRemoved(at=at(seconds), node="local", last_seen_at=at(heard))


async def seconds(biller: Biller, organization: str) -> list[int]:
    await biller.charge()
    return sorted(charged for charged, _ in (await biller.charged(organization)).values())


async def test_it_is_charged_to_the_last_word_of_its_node(biller: Biller) -> None:
    org = new_id("org")
    here, elsewhere = started(org, at(0)), started(org, at(0), node="n2")
    await biller.record(here, elsewhere)
    await biller.pass_until(at(120))
    assert await seconds(biller, org) == [120, 120]
    await biller.record(removed(130, heard=100))
    await biller.pass_until(at(3600))
    assert await seconds(biller, org) == [100, 3600]
    await biller.assert_books_balance()


async def test_another_machine_under_its_name_has_meters_of_its_own(biller: Biller) -> None:
    org = new_id("org")
    await biller.record(started(org, at(0)), removed(60, heard=60))
    await biller.record(started(org, at(90)))
    await biller.pass_until(at(120))
    assert await seconds(biller, org) == [30, 60]
    # Said again, it is still the first machine that went; and then the second goes too.
    await biller.record(removed(60, heard=60), removed(150, heard=140))
    await biller.pass_until(at(300))
    assert await seconds(biller, org) == [50, 60]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(("stop", "charged"), [(40, 40), (90, 60)])
async def test_the_order_does_not_matter(
    biller: Biller, order: tuple[int, ...], stop: float, charged: int
) -> None:
    """A stop that is told of an earlier moment counts; after its last word a machine ran for nobody."""
    org = new_id("org")
    start = started(org, at(0))
    facts: list[InstanceStarted | InstanceStopped | NodeRemoved] = [
        start,
        stopped(start, at(stop)),
        removed(80, heard=60),
    ]
    await biller.pass_until(at(120))
    for fact in order:
        await biller.record(facts[fact])
    assert await seconds(biller, org) == [charged]


async def test_one_that_began_after_the_last_word_costs_nothing(biller: Biller) -> None:
    org = new_id("org")
    await biller.record(removed(80, heard=60), started(org, at(70)))
    await biller.pass_until(at(120))
    assert await seconds(biller, org) == []
