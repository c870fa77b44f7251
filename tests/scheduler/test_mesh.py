"""Whom an ingress may send to: the nodes a workload is placed on, among those that are nodes."""

from contracts.events import AppChanged
from contracts.mesh import Peer, Placed
from contracts.queries import NodeChanged, NodeRemoved
from contracts.reports import NodePeer
from contracts.workload import Needs, Process, WorkloadSpec
from node_agent.certificate import ask
from scheduler.peers import Peers
from scheduler.projection import Projection

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import newer, spec
from tests.scheduler.test_joining import join, token
from tests.scheduler.test_moving import alive, silence
from tests.scheduler.test_projection import placed

REQUEST = ask().partition("-----BEGIN PRIVATE")[0]


async def placed_on(stage: Stage, app: WorkloadSpec, *nodes: str) -> Placed:
    """What is said of the workload, once it is said to be on these."""

    async def look() -> Placed | None:
        entry = await stage.bus.bucket("places").get(app.id)
        found = None if entry is None else Placed.model_validate_json(entry.value)
        return found if found is not None and found.nodes == nodes else None

    return await eventually(look, what=f"{app.id} on {nodes}")


async def peer(stage: Stage, node: str) -> Peer | None:
    entry = await stage.bus.bucket("peers").get(node)
    return None if entry is None else Peer.model_validate_json(entry.value)


async def test_a_workload_is_said_to_be_where_its_nodes_were_told(scheduler: Stage) -> None:
    app = spec(needs=Needs(spread=True), processes={"web": Process(replicas=2)})
    await scheduler.joins("n1", "n2")
    await scheduler.harness.publish(AppChanged(spec=app))
    said = await placed_on(scheduler, app, "n1", "n2")
    assert (said.organization, said.workload) == (app.organization, app.id)
    # It moves off a node that is drained only when it runs elsewhere.
    await scheduler.joins("n3")
    await scheduler.bus.ask(NodeChanged(node="n1", draining=True))
    await placed_on(scheduler, app, "n1", "n2", "n3")
    await alive(scheduler, "n3", app)
    await placed_on(scheduler, app, "n2", "n3")
    later = newer(app, state="stopped")
    await scheduler.harness.publish(AppChanged(spec=later))
    assert (await placed_on(scheduler, app)).revision > said.revision


async def test_a_copy_on_a_node_that_is_lost_is_given_up_for_all(scheduler: Stage) -> None:
    app = spec()
    await scheduler.joins("n1")
    await scheduler.harness.publish(AppChanged(spec=app))
    await placed_on(scheduler, app, "n1")
    await scheduler.joins("n2")
    await silence(scheduler, "n1", others=("n2",))
    await placed_on(scheduler, app, "n2")
    # Back, and still running it, as it says itself.
    await alive(scheduler, "n1", app)
    await placed_on(scheduler, app, "n2")


async def test_what_the_bucket_has_lost_is_said_again_and_what_is_deleted_forgotten(stage: Stage) -> None:
    app = spec()
    await placed(stage, app)
    projection = Projection(stage.runtime)
    await projection.project()
    before = await placed_on(stage, app, "n1")
    bucket = stage.bus.bucket("places")
    for damage in (None, b"{", before.model_copy(update={"revision": 0, "nodes": ("n9",)}).model_dump_json()):
        if damage is None:
            await bucket.delete(app.id)
        else:
            await bucket.put(app.id, damage if isinstance(damage, bytes) else damage.encode())
        await projection.survey()
        assert await placed_on(stage, app, "n1") == before


async def test_a_node_is_given_a_certificate_and_a_removed_one_is_taken_out(scheduler: Stage) -> None:
    await scheduler.bus.ask(join(await token(scheduler), node="n1"))
    await scheduler.joins("n1", "n2", "n4")
    for report in (
        # One says where it is reached; the other does not know, and joined from somewhere.
        NodePeer(node="n2", host="two.example.com", port=7443, request=REQUEST),
        NodePeer(node="n1", port=7000, request=REQUEST),
        # Somebody who is no node; and who asks for nothing that could be given stops nobody.
        NodePeer(node="n3", port=7443, request=REQUEST),
        NodePeer(node="n4", port=7443, request="nonsense"),
    ):
        await scheduler.bus.report(report)

    async def both() -> bool:
        return await scheduler.bus.bucket("peers").keys() == ["n1", "n2"]

    await eventually(both, what="the peers")
    one, two = await peer(scheduler, "n1"), await peer(scheduler, "n2")
    assert one is not None
    assert two is not None
    assert ((one.host, one.port), (two.host, two.port)) == (("192.0.2.1", 7000), ("two.example.com", 7443))
    assert one.authority == two.authority
    assert one.certificate != two.certificate

    await scheduler.bus.ask(NodeRemoved(node="n1", force=True))
    assert await peer(scheduler, "n1") is None
    # It asks once more, from a connection that was not cut yet; and what a crash has left is taken out.
    await scheduler.bus.report(NodePeer(node="n1", port=7000, request=REQUEST))
    await scheduler.bus.report(NodePeer(node="n2", host="again.example.com", port=7443, request=REQUEST))

    async def again() -> bool:
        found = await peer(scheduler, "n2")
        return found is not None and found.host == "again.example.com"

    await eventually(again, what="n2 again")
    assert await peer(scheduler, "n1") is None
    await scheduler.bus.bucket("peers").put("n1", one.model_dump_json().encode())
    await Peers(scheduler.runtime).survey()
    assert await scheduler.bus.bucket("peers").keys() == ["n2"]
