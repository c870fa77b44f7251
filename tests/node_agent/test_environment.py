"""What an instance is told: its app's variables, and the platform's own word last."""

import pytest
from contracts import variables
from contracts.errors import ProviderFailed
from contracts.workload import NodeWorkload, Slot, WorkloadSpec
from node_agent.environment import Environment
from runtime.seal import Seal

from tests.node_agent.conftest import World, next_release, spec, wanted

KEY = "what is sealed for the node"
WEB = Slot(process="web", index=1)


def told(app: WorkloadSpec, sealed: str | None, digest: str | None = "d1") -> NodeWorkload:
    told = wanted(app.model_copy(update={"variables_digest": digest}))
    return told.model_copy(update={"variables": sealed})


def sealed_for(node: str, app: WorkloadSpec, text: str, key: str = KEY) -> str:
    return Seal(key).close(text, variables.for_node(app.id, node))


@pytest.mark.promise("U5")
def test_the_platforms_own_word_is_the_last() -> None:
    app = spec()
    given = told(app, sealed_for("n1", app, '{"GREETING": "hello\\nyou", "PORT": "1", "PS": "x"}'))
    assert Environment("n1", lambda: KEY).of(given, WEB) == {
        "GREETING": "hello\nyou",
        "PORT": str(app.port),
        "DYNO": "web.2",
        "PS": "web.2",
    }


def test_without_variables_no_key_is_asked_for() -> None:
    def key() -> str:
        raise AssertionError("nothing is sealed")

    assert set(Environment("n1", key).of(told(spec(), None, digest=None), WEB)) == {"PORT", "DYNO", "PS"}


def test_what_cannot_be_opened_is_said_plainly() -> None:
    app = spec()
    for sealed in (
        sealed_for("n2", app, "{}"),
        sealed_for("n1", app, "{}", key="another"),
        sealed_for("n1", app, "no JSON"),
        "no seal",
    ):
        with pytest.raises(ProviderFailed, match="cannot be unsealed on this node"):
            Environment("n1", lambda: KEY).of(told(app, sealed), WEB)
    with pytest.raises(ProviderFailed, match="could not be read for this node"):
        Environment("n1", lambda: KEY).of(told(app, None), WEB)


async def test_a_node_that_cannot_unseal_keeps_the_old_and_says_why(world: World) -> None:
    app, old = await world.live()
    later = next_release(app, variables_digest="d2")
    blind = wanted(later, revision=2).model_copy(update={"variables": "what another key has sealed"})
    await world.want(blind)
    finished = await world.finished(later)
    assert not finished.ok
    assert "cannot be unsealed on this node" in (finished.reason or "")
    assert finished.running == 1
    assert await world.running(app) == old
