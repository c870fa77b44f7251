"""What instances use, as their nodes said it lately."""

from contracts.events import AppChanged
from contracts.ids import new_id
from contracts.queries import UsageOf
from contracts.reports import InstanceUsage, VolumeUse

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
