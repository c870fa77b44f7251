"""Jobs of an app with volumes go where these are; a first one makes its node their home."""

from contracts.events import AppChanged, AppDeleted, JobBlocked, JobPlaced, JobRequested, VolumesMoved
from contracts.ids import new_id
from contracts.jobs import Job
from contracts.queries import CopiesOf, NodeChanged
from contracts.workload import Process, Volume, WorkloadSpec

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import newer, spec
from tests.scheduler.test_copies import order, runs_on_n1, says, stateful, told_when
from tests.scheduler.test_jobs import ended, finished, job, told
from tests.scheduler.test_moving import silence

IMAGE = "registry.localhost/shop@sha256:1"


async def ask(stage: Stage, wanted: Job) -> Job:
    await stage.harness.publish(JobRequested(job=wanted))
    return wanted


async def blocked(stage: Stage, wanted: Job) -> dict[str, str]:
    return (await stage.harness.event(JobBlocked, lambda e: e.job == wanted.id)).reasons


async def disk(stage: Stage, node: str) -> int:
    return (await stage.node(node)).allocated.disk_mb


async def test_a_job_goes_where_the_volumes_are_or_waits(scheduler: Stage) -> None:
    app = await runs_on_n1(scheduler)
    before = await disk(scheduler, "n1")
    await scheduler.joins("n2")
    # Nothing new comes there, but this can go nowhere else.
    await scheduler.bus.ask(NodeChanged(node="n1", disabled=True))
    wanted = await ask(scheduler, job(scheduler, app))
    found = await told(scheduler, "n1", wanted)
    assert found.job.spec.volumes == app.volumes
    desired = await scheduler.desired("n1", app.id)
    assert desired is not None
    assert (found.workload.revision, found.workload.home) == (desired.revision, desired.home)
    assert await disk(scheduler, "n1") == before + app.limits.disk_mb, "its instances count the volumes"
    second = await ask(scheduler, job(scheduler, app))
    await told(scheduler, "n1", second)
    many = [await ask(scheduler, job(scheduler, app)) for _ in range(6)]
    await scheduler.harness.settle()
    assert await blocked(scheduler, many[-1]) == {"n1": "memory short by 128 MB"}, "the other is not asked"
    await silence(scheduler, "n1", others=("n2",))
    later = await ask(scheduler, job(scheduler, app))
    assert await blocked(scheduler, later) == {"n1": "offline, and the volumes are there"}


async def test_the_first_job_decides_where_the_data_is_and_the_instances_follow_it(scheduler: Stage) -> None:
    new = stateful(image=None, deployment=None, processes={"web": Process(replicas=3)})
    # The idlest has no room for all three.
    await scheduler.joins("n1", memory_mb=300)
    await scheduler.joins("n2")
    await scheduler.harness.publish(AppChanged(spec=new))
    live = newer(new, image=IMAGE)
    phase = await ask(scheduler, job(scheduler, new.model_copy(update={"image": IMAGE}), kind="release"))
    found = await told(scheduler, "n2", phase)
    assert await disk(scheduler, "n2") == 256 + 512, "nobody else counts the volume yet"
    desired = await scheduler.told("n2", new, slots=0)
    assert desired.revision == found.workload.revision, "its node hears of what becomes of the data"
    assert (await scheduler.bus.ask(CopiesOf(workload=new.id))).home == "n2"
    await scheduler.harness.publish(finished(phase, "n2"))
    await ended(scheduler, phase)
    assert await disk(scheduler, "n2") == 512, "the volume stays"
    await scheduler.harness.publish(AppChanged(spec=live))
    await scheduler.told("n2", live, slots=3)
    assert await scheduler.desired("n1", new.id) is None
    # So it is also told of the end.
    other = stateful(image=None)
    await scheduler.harness.publish(AppChanged(spec=other))
    await ask(scheduler, first := job(scheduler, other.model_copy(update={"image": IMAGE})))
    node = (await scheduler.harness.event(JobPlaced, lambda e: e.job == first.id)).placed_on
    gone = newer(other, state="deleted")
    await scheduler.harness.publish(AppDeleted(spec=gone))
    assert (await scheduler.told(node, gone, slots=0)).spec.state == "deleted"


async def test_where_no_node_has_room_for_all_of_it_one_with_room_for_the_job_will_do(
    scheduler: Stage,
) -> None:
    new = stateful(image=None, processes={"web": Process(replicas=30)})
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=new))
    wanted = await ask(scheduler, job(scheduler, new.model_copy(update={"image": IMAGE})))
    await told(scheduler, "n1", wanted)


async def test_a_job_waits_until_its_app_is_known_and_placed(scheduler: Stage) -> None:
    await scheduler.joins("n1", "n2")
    volume = Volume(id=new_id("vol"), name="data", path="/data", size_mb=64)
    app = spec()
    await scheduler.harness.publish(AppChanged(spec=app))
    await scheduler.harness.settle()
    with_volume = newer(app, volumes=(volume,))
    wanted = await ask(scheduler, job(scheduler, with_volume))
    assert list((await blocked(scheduler, wanted)).values()) == ["a change of the app is not placed yet"]
    unknown = await ask(scheduler, job(scheduler, stateful()))
    assert list((await blocked(scheduler, unknown)).values()) == ["its volumes are not known yet"]
    await scheduler.harness.publish(AppChanged(spec=with_volume))
    home = await eventually(lambda: home_of(scheduler, app), what="a home")
    scheduler.nudge("jobs")
    assert (await told(scheduler, home, wanted)).job.spec.volumes == (volume,)
    # Without volumes it goes anywhere, and gets none that are gone.
    without = newer(with_volume, volumes=())
    await scheduler.harness.publish(AppChanged(spec=without))
    await scheduler.told(home, without, slots=1)
    late = await ask(scheduler, job(scheduler, with_volume))
    placed = await scheduler.harness.event(JobPlaced, lambda e: e.job == late.id)
    assert (await told(scheduler, placed.placed_on, late)).job.spec.volumes == ()


async def home_of(stage: Stage, app: WorkloadSpec) -> str | None:
    return (await stage.bus.ask(CopiesOf(workload=app.id))).home


async def test_while_the_last_of_the_data_is_on_its_way_no_job_is_begun_and_then_at_its_new_home(
    scheduler: Stage,
) -> None:
    app = await runs_on_n1(scheduler, state="running")
    await scheduler.joins("n2")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    early = await ask(scheduler, job(scheduler, app))
    await told(scheduler, "n1", early)
    await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode="frozen"))
    await told_when(scheduler, "n1", app, moving=True, slots=())
    wanted = await ask(scheduler, job(scheduler, app))
    assert await blocked(scheduler, wanted) == {"n1": "its data is on its way to another node"}
    await says(scheduler, "n2", app, await order(scheduler, "n2", app, mode="final"))
    await scheduler.harness.event(VolumesMoved)
    await told_when(scheduler, "n1", app, moving=False, home=1)
    scheduler.nudge("jobs")
    found = await told(scheduler, "n2", wanted)
    assert (found.workload.home, found.job.spec.volumes) == (1, app.volumes)
