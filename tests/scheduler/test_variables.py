"""Variables on their way to a node: opened here, and sealed again for that node alone."""

import pytest
from contracts import variables
from contracts.errors import InvalidInput
from contracts.ids import new_id
from contracts.workload import NodeWorkload, Process, Volume, WorkloadSpec
from runtime.seal import Seal
from scheduler.projection import Projection

from tests.scheduler.conftest import Stage
from tests.scheduler.samples import newer, spec
from tests.scheduler.test_projection import placed

TEXT = '{"PASSWORD":"hunter2"}'


def with_variables(stage: Stage, app: WorkloadSpec, digest: str = "d1") -> WorkloadSpec:
    seal = Seal(stage.runtime.settings.seal_key_of("variables"))
    sealed = seal.close(TEXT, variables.for_scheduler(app.id))
    return app.model_copy(update={"variables": sealed, "variables_digest": digest})


async def told(stage: Stage, app: WorkloadSpec) -> NodeWorkload:
    await Projection(stage.runtime).project()
    found = await stage.desired("n1", app.id)
    assert found is not None
    return found


@pytest.mark.promise("U4")
async def test_only_the_node_itself_can_read_them(stage: Stage) -> None:
    app = with_variables(stage, spec())
    await placed(stage, app)
    found = await told(stage, app)
    assert found.variables is not None
    assert found.spec.variables is None
    assert (found.spec.variables_digest, found.spec.fingerprint()) == ("d1", app.fingerprint())
    settings = stage.runtime.settings
    own = Seal(settings.seal_key_of_node("n1"))
    assert own.open(found.variables, variables.for_node(app.id, "n1")) == TEXT
    for key, node in ((settings.seal_key_of_node("n2"), "n1"), (settings.seal_key_of_node("n1"), "n2")):
        with pytest.raises(InvalidInput):
            Seal(key).open(found.variables, variables.for_node(app.id, node))
    entry = await stage.bucket.get(f"n1.{app.id}")
    assert entry is not None
    assert b"hunter2" not in entry.value


async def test_nothing_is_written_again_without_need(stage: Stage) -> None:
    app = with_variables(stage, spec())
    await placed(stage, app)
    await told(stage, app)
    before = await stage.bucket.entries()
    projection = Projection(stage.runtime)
    await projection.project()
    await projection.survey()
    assert await stage.bucket.entries() == before
    # Another slot is another revision, and no other environment.
    await placed(stage, newer(app, processes={"web": Process(replicas=2)}))
    assert (await told(stage, app)).spec.fingerprint() == app.fingerprint()


async def test_what_cannot_be_opened_goes_on_without_them(stage: Stage) -> None:
    app = spec().model_copy(update={"variables": "of another key", "variables_digest": "d1"})
    await placed(stage, app)
    found = await told(stage, app)
    assert (found.variables, found.spec.variables_digest) == (None, "d1")


async def test_a_node_that_runs_nothing_of_it_gets_no_secret_any_more(stage: Stage) -> None:
    volume = Volume(id=new_id("vol"), name="data", path="/data", size_mb=64)
    for volumes, has_them in (((), False), ((volume,), True)):
        app = with_variables(stage, spec(volumes=volumes))
        await placed(stage, app)
        assert (await told(stage, app)).variables is not None
        await placed(stage, with_variables(stage, newer(app, state="stopped"), "d2"))
        left = await told(stage, app)
        assert left.slots == ()
        assert (left.variables is not None) == has_them, "its home has its data, and its commands"
