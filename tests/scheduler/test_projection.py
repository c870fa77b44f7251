"""The bucket follows the tables, whatever happens to the bucket."""

import asyncio
import shutil

import pytest
from contracts.events import AppChanged
from contracts.ids import new_id
from contracts.workload import NodeWorkload, Process, WorkloadSpec
from nats.errors import Error as NatsError
from pydantic import ValidationError
from runtime.store import PLATFORM
from runtime.streams import declare
from scheduler.place import Placing
from scheduler.projection import Projection, key_of, revision_in
from scheduler.workloads import Workloads

from tests.harness import Servers, eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import heartbeat, newer, spec
from tests.scheduler.test_nodes import nodes_of


async def placed(stage: Stage, *specs: WorkloadSpec) -> None:
    """Without a running scheduler, so that nothing is projected but by the test."""
    await nodes_of(stage).heard([heartbeat("n1", memory_mb=100_000, cpu_millis=100_000)])
    async with stage.runtime.store.transaction(PLATFORM) as tx:
        await Workloads(stage.runtime, lambda: None).adopt(specs, tx)
    while await Placing(stage.runtime, lambda: None).place():
        pass


async def put(stage: Stage, node: str, revision: int, of: WorkloadSpec) -> None:
    value = NodeWorkload(node=node, revision=revision, spec=of, slots=())
    await stage.bucket.put(key_of(node, of.id), value.model_dump_json().encode())


async def revision(stage: Stage, of: WorkloadSpec, node: str = "n1") -> int:
    found = await stage.desired(node, of.id)
    assert found is not None
    return found.revision


def test_what_is_no_desired_state_counts_as_older_than_any() -> None:
    assert revision_in(b"") == revision_in(b"{}") == revision_in(b"[1]") == 0
    assert revision_in(b'{"revision": 7, "slots": []}') == 7


async def test_a_newer_revision_in_the_bucket_is_never_written_over(stage: Stage) -> None:
    app = spec()
    await placed(stage, app)
    await put(stage, "n1", 2, newer(app))
    await Projection(stage.runtime).project()
    assert await revision(stage, app) == 2


async def test_what_stands_in_the_bucket_is_replaced_by_what_is_newer(stage: Stage) -> None:
    app = spec()
    await placed(stage, app)
    await stage.bucket.put(key_of("n1", app.id), b"not a desired state")
    projection = Projection(stage.runtime)
    await projection.project()
    later = newer(app, image="two")
    await placed(stage, later)
    await projection.project()
    told = await stage.desired("n1", app.id)
    assert told is not None
    assert (told.spec, told.revision, len(told.slots)) == (later, 2, 1)


async def test_a_lost_bucket_is_written_again_as_it_was(stage: Stage) -> None:
    apps = [spec(processes={"web": Process(replicas=i)}) for i in (1, 2, 3)]
    await placed(stage, *apps)
    projection = Projection(stage.runtime)
    await projection.project()
    before = await stage.bucket.entries()
    assert len(before) == 3
    js = stage.harness.client.jetstream()
    await js.delete_stream("KV_desired")
    await declare(js)
    await projection.survey()
    after = await stage.bucket.entries()
    assert {k: e.value for k, e in after.items()} == {k: e.value for k, e in before.items()}


async def test_a_server_that_lost_its_disk_is_noticed_at_the_reconnect(
    stage: Stage, running: Servers
) -> None:
    app = spec()
    await placed(stage, app)
    projection = Projection(stage.runtime)
    await projection.watch()
    assert await revision(stage, app) == 1
    await stage.bucket.delete(key_of("n1", app.id))
    await projection.watch()
    assert await stage.desired("n1", app.id) is None, "not yet time to look again"

    running.nats.stop()
    shutil.rmtree(running.nats.folder / "jetstream")
    running.nats.start()
    running.nats.wait_ready()

    everybody = (stage.harness.client, stage.bus.client, stage.runtime.bus.client)

    async def declared() -> bool:
        try:
            await declare(stage.harness.client.jetstream(timeout=1))
        except NatsError:
            return False
        return all(client.is_connected for client in everybody)

    await eventually(declared, what="everybody connected again")
    await projection.watch()
    assert await revision(stage, app) == 1


async def test_an_older_value_that_came_back_is_replaced(stage: Stage) -> None:
    app = spec()
    await placed(stage, app)
    projection = Projection(stage.runtime)
    await projection.project()
    await placed(stage, newer(app, image="two"))
    await projection.project()
    assert await revision(stage, app) == 2
    await put(stage, "n1", 1, app)
    await projection.survey()
    told = await stage.desired("n1", app.id)
    assert told is not None
    assert (told.revision, told.spec.image, len(told.slots)) == (2, "two", 1)


async def test_tables_that_are_behind_the_bucket_outbid_it(stage: Stage) -> None:
    app = spec()
    await placed(stage, app)
    projection = Projection(stage.runtime)
    await projection.project()
    await put(stage, "n1", 40, newer(app))
    await projection.survey()
    told = await stage.desired("n1", app.id)
    assert told is not None
    assert (told.revision, told.spec, len(told.slots)) == (41, app, 1)
    await placed(stage, newer(app, image="two"))
    await projection.project()
    assert await revision(stage, app) == 42


async def test_a_node_the_tables_do_not_place_it_on_is_told_to_run_nothing(stage: Stage) -> None:
    app = spec()
    await placed(stage, app)
    await nodes_of(stage).heard([heartbeat("n2", region="us")])
    await put(stage, "n2", 9, app)
    await Projection(stage.runtime).survey()
    told = await stage.desired("n2", app.id)
    assert told is not None
    assert (told.revision, told.slots) == (10, ())
    assert await revision(stage, app) == 1


async def test_what_nobody_knows_is_left_alone(stage: Stage) -> None:
    stranger = spec()
    await put(stage, "n1", 3, stranger)
    await put(stage, "n9", 3, stranger.model_copy(update={"id": new_id("app")}))
    before = await stage.bucket.entries()
    await Projection(stage.runtime).survey()
    assert await stage.bucket.entries() == before


async def test_schedulers_that_project_at_once_agree(stage: Stage) -> None:
    apps = [spec() for _ in range(60)]
    await placed(stage, *apps)
    replicas = [Projection(stage.runtime)] + [
        Projection(await stage.harness.store("scheduler")) for _ in range(2)
    ]
    await asyncio.gather(*(replica.project() for replica in replicas))
    await placed(stage, *(newer(app, image="two") for app in apps))
    await asyncio.gather(*(replica.project() for replica in replicas))
    entries = await stage.bucket.entries()
    assert len(entries) == 60
    assert {revision_in(entry.value) for entry in entries.values()} == {2}


async def test_one_workload_that_cannot_be_written_holds_up_nobody(stage: Stage) -> None:
    broken, sound = sorted((spec(), spec()), key=lambda s: s.id)
    await placed(stage, broken, sound)
    async with stage.runtime.store.transaction(PLATFORM) as tx:
        connection = await tx.connection()
        await connection.execute("update workload set in_force = '{}' where id = %s", (broken.id,))
    with pytest.raises(ValidationError):
        await Projection(stage.runtime).project()
    assert await revision(stage, sound) == 1


async def test_a_running_scheduler_writes_again_what_a_lost_bucket_lacks_when_it_starts(stage: Stage) -> None:
    await stage.harness.start("scheduler")
    await stage.joins("n1")
    app = spec()
    await stage.harness.publish(AppChanged(spec=app))
    await stage.told("n1", app, slots=1)
    await stage.harness.stop("scheduler")
    await stage.bucket.delete(key_of("n1", app.id))
    assert await stage.desired("n1", app.id) is None
    await stage.harness.start("scheduler")
    assert (await stage.told("n1", app, slots=1)).revision == 1
