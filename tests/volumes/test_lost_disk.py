"""A node comes back without its disk: a volume is made once, and no empty one takes the place of a copy."""

import asyncio

from contracts.events import RolloutFinished
from node_agent.commands import run

from tests.harness import eventually
from tests.node_agent.conftest import spec
from tests.ports.fake_engine import FakeEngine
from tests.volumes.conftest import Fleet, volume


async def test_what_was_on_it_is_not_made_again_and_the_copy_stays(fleet: Fleet) -> None:
    one = volume(16)
    app = spec(volumes=(one,))
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    data = await fleet.exists(fleet.data("n1", one))
    (data / "note").write_text("what the customer wrote")
    await fleet.want("n1", app, 2, made=(one.id,))
    await fleet.copied(app, "n1", "n2")
    copy = fleet.volumes("n2") / "copies" / app.id / f"{one.id}.ext4"
    assert b"what the customer wrote" in copy.read_bytes()

    await fleet.harness.stop("n1")
    await fleet.engines["n1"].end()
    await asyncio.to_thread(run, "umount", str(fleet.volumes("n1") / "mounts" / one.id))
    kept = fleet.state("n1").rename(fleet.folder / "not-mounted")
    fleet.engines["n1"] = FakeEngine()
    await fleet.start("n1")
    told = await fleet.harness.event(RolloutFinished, lambda e: e.node == "n1" and not e.ok)
    assert told.reason is not None
    assert told.reason.endswith("its volume data is not on its node any more")
    order = await fleet.order(app, "n1", "n2")

    async def refused() -> bool:
        said = fleet.states.get(("n2", order.id))
        return said is not None and "is not on its node any more" in (said.words or "")

    await eventually(refused, what="the refusal of another copy")
    await fleet.forget(app, "n1", "n2")
    assert b"what the customer wrote" in copy.read_bytes()

    # The disk is there again.
    await fleet.harness.stop("n1")
    await asyncio.to_thread(run, "rm", "-r", str(fleet.state("n1")))
    kept.rename(fleet.state("n1"))
    await fleet.start("n1")
    data = await fleet.exists(fleet.data("n1", one))
    assert (data / "note").read_text() == "what the customer wrote"
