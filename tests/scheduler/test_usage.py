"""What instances use, as their nodes said it lately."""

from datetime import datetime, timedelta

import pytest
from contracts.events import AppChanged
from contracts.ids import new_id
from contracts.queries import SilentAfter, Traffic, UsageOf
from contracts.reports import InstanceUsage, NodeTraffic, TrafficCount, VolumeUse
from contracts.workload import Process
from scheduler import traffic, usage

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import heartbeat, running, spec


async def test_the_newest_word_about_every_instance_counts_until_it_is_old(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)
    for sequence, cpu in ((2, 100), (3, 250)):
        used = InstanceUsage(cpu_seconds=float(sequence), cpu_millis=cpu, memory_mb=64)
        one = running(app).model_copy(update={"usage": used})
        held = VolumeUse(volume=new_id("vol"), workload=app.id, used_mb=sequence, size_mb=64)
        said = heartbeat("n1", sequence=sequence, instances=(one,))
        await scheduler.report(said.model_copy(update={"volumes": (held,)}))
    answer = await scheduler.bus.ask(UsageOf(workload=app.id))
    (found,) = answer.instances
    assert [volume.used_mb for volume in answer.volumes] == [3]
    assert (found.node, found.process, found.cpu_millis, found.memory_mb) == ("n1", "web", 250, 64)
    assert (await scheduler.bus.ask(UsageOf(workload=spec().id))).instances == ()
    scheduler.harness.clock.advance(120)
    assert (await scheduler.bus.ask(UsageOf(workload=app.id))).instances == ()


async def test_silent_is_what_has_a_place_and_of_which_no_node_says_that_it_answers(
    scheduler: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_PAGE", 1)
    await scheduler.joins("n1", "n2")
    answers, ill, absent = spec(), spec(), spec()
    # No request goes to these.
    hidden = spec(processes={"worker": Process()})
    for app in (answers, ill, absent, hidden):
        await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.harness.settle()

    async def silent() -> set[str]:
        found: list[str] = []
        after: str | None = None
        while True:
            page = await scheduler.bus.ask(SilentAfter(after=after))
            found += page.workloads
            after = page.next
            if after is None:
                assert found == sorted(found)
                return set(found)

    assert await silent() == {answers.id, ill.id, absent.id}
    at = scheduler.harness.clock.now()
    said = (running(answers), running(ill).model_copy(update={"healthy": False}))
    await scheduler.report(heartbeat("n2", sequence=2, at=at, instances=said))
    assert await silent() == {ill.id, absent.id}
    # One of several that answers is enough.
    await scheduler.report(heartbeat("n1", sequence=2, at=at, instances=(running(ill),)))
    assert await silent() == {absent.id}
    scheduler.harness.clock.advance(120)
    assert await silent() == {answers.id, ill.id, absent.id}


async def test_requests_are_counted_once_whatever_becomes_of_the_reports(scheduler: Stage) -> None:
    app, other = spec(), spec()
    for one in (app, other):
        await scheduler.harness.publish(AppChanged(spec=one))
    await scheduler.harness.settle()
    clock = scheduler.harness.clock

    def report(node: str, boot: str, requests: int, **more: float) -> NodeTraffic:
        numbers = {"failed": requests // 10, "slow": 1, "seconds": requests * 0.02, **more}
        counts = tuple(TrafficCount(workload=id, requests=requests, **numbers) for id in (app.id, spec().id))
        return NodeTraffic(node=node, boot=boot, at=clock.now(), counts=counts)

    async def heard(*reports: NodeTraffic) -> Traffic:
        await traffic.heard(scheduler.runtime, reports)
        return (await scheduler.bus.ask(UsageOf(workload=app.id))).traffic

    first = report("n1", "a", 100)
    assert (await heard(first)).requests == 100
    clock.advance(30)
    second = report("n1", "a", 160)
    # Twice, late, out of order: the same.
    for said in ((second,), (second, first), (first, second)):
        seen = await heard(*said)
        assert (seen.requests, seen.failed) == (160, 16)
        assert round(seen.per_second, 1) == 2.0
        assert round(seen.mean_ms or 0) == 20
    # One was lost in between, and the ingress was started anew: from nothing, and from where it was.
    clock.advance(60)
    assert (await heard(report("n1", "a", 460))).requests == 460
    clock.advance(30)
    assert (await heard(report("n1", "b", 5))).requests == 465
    clock.advance(30)
    assert (await heard(report("n1", "b", 2))).requests == 467
    # Another node's ingress has its own counters.
    assert (await heard(report("n2", "a", 33))).requests == 500
    # One that the database refuses stops no other.
    clock.advance(30)
    broken = report("n3", "\0", 7)
    assert (await heard(broken, report("n2", "a", 63))).requests == 530
    assert (await scheduler.bus.ask(UsageOf(workload=other.id))).traffic == Traffic()
    # What nobody has said lately is not said of now.
    clock.advance(200)
    seen = (await scheduler.bus.ask(UsageOf(workload=app.id))).traffic
    assert (seen.requests, seen.per_second, seen.mean_ms) == (530, 0, None)
    # And over the bus, from whoever may.
    await scheduler.bus.report(report("n1", "b", 12))

    async def known() -> bool:
        return (await scheduler.bus.ask(UsageOf(workload=app.id))).traffic.requests == 540

    await eventually(known, what="the report")


@pytest.mark.parametrize("ahead", [timedelta(hours=2), timedelta(hours=-2)])
async def test_a_node_whose_clock_is_wrong_says_what_is_so_now(scheduler: Stage, ahead: timedelta) -> None:
    await scheduler.joins("n1")
    app, clock = spec(), scheduler.harness.clock
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)

    async def requests(boot: str, number: int, at: datetime) -> Traffic:
        count = TrafficCount(workload=app.id, requests=number, failed=0, slow=0, seconds=0.0)
        await traffic.heard(scheduler.runtime, [NodeTraffic(node="n1", boot=boot, at=at, counts=(count,))])
        return (await scheduler.bus.ask(UsageOf(workload=app.id))).traffic

    await requests("right before", 10, clock.now())
    clock.advance(30)
    await scheduler.report(heartbeat("n1", sequence=2, at=clock.now() + ahead, instances=(running(app),)))
    assert (await scheduler.bus.ask(SilentAfter())).workloads == ()
    assert (await requests("wrong", 20, clock.now() + ahead)).requests == 30
    clock.advance(30)
    seen = await requests("right again", 5, clock.now())
    assert seen.requests == 35
    assert seen.per_second > 0
    clock.advance(101)
    assert (await scheduler.bus.ask(SilentAfter())).workloads == (app.id,), "and it is not so for ever"


async def test_a_late_report_of_an_ingress_that_has_begun_anew_is_not_counted_again(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    app, clock = spec(), scheduler.harness.clock
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.told("n1", app, slots=1)

    def said(boot: str, number: int) -> NodeTraffic:
        count = TrafficCount(workload=app.id, requests=number, failed=0, slow=0, seconds=0.0)
        return NodeTraffic(node="n1", boot=boot, at=clock.now(), counts=(count,))

    reports = [said("before", 100)]
    for number in (5, 7):
        clock.advance(30)
        reports.append(said("after", number))
    first, second, third = reports
    # Two schedulers hear them, one of which has stood still for a while.
    await traffic.heard(scheduler.runtime, [first, second, first, third])
    assert (await scheduler.bus.ask(UsageOf(workload=app.id))).traffic.requests == 107
