"""What a node may pull: images of what it is ordered to run, for some minutes, and of nobody else's."""

import base64
import json
from typing import Any

import pytest
from contracts.errors import Forbidden
from contracts.events import AppChanged
from contracts.ids import new_id
from contracts.lines import KeepLines
from contracts.permits import PullPermitFor
from runtime.permissions import node_name, node_user

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import newer, spec


def read(token: str) -> Any:
    body = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))


@pytest.mark.promise("P9")
async def test_a_node_may_pull_what_it_is_ordered_to_run(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    await scheduler.joins("n2", region="us")
    buses = {node: await scheduler.harness.everybody(node_name(node)) for node in ("n1", "n2")}
    one, other = spec(), spec(region="us")
    for wanted in (one, other):
        await scheduler.bus.publish(AppChanged(spec=wanted))
    await scheduler.told("n1", one, slots=1)
    await scheduler.told("n2", other, slots=1)

    async def ask(node: str, image: str) -> Any:
        return read((await buses[node].ask(PullPermitFor(node=node, image=image))).token)

    image = f"registry.example.com:5000/{one.organization}/{one.id}@sha256:{'1' * 64}"
    claims = await ask("n1", image)
    name = f"{one.organization}/{one.id}"
    assert claims["access"] == [{"type": "repository", "name": name, "actions": ["pull"]}]
    assert claims["sub"] == "node-n1"
    assert claims["exp"] - claims["iat"] == 300

    for node, asked in (
        ("n2", image),
        ("n1", f"registry.example.com:5000/{other.organization}/{other.id}:1"),
        # Its own workload in another's repository, and the other way round.
        ("n1", f"registry.example.com:5000/{other.organization}/{one.id}:1"),
        ("n1", f"registry.example.com:5000/{one.organization}/{new_id('app')}:1"),
        ("n1", "registry.example.com:5000/x"),
    ):
        with pytest.raises(Forbidden):
            await ask(node, asked)

    # In another's name: its user on the bus may ask under its own alone, and what is asked says the same.
    said = PullPermitFor(node="n1", image=image).model_dump_json().encode()
    reply = await buses["n2"].client.request(f"{PullPermitFor.subject()}.n2", said, timeout=5)
    assert json.loads(reply.data)["error"]["kind"] == "InvalidInput"
    # And nobody is told the answer but who asks: it is published with the owner's rights.
    (key, own) = "$KV.desired.n2.app_x", f"{PullPermitFor.subject()}.n1"
    for elsewhere in (key, "_INBOX_gateway.x", f"{own}.x", "_INBOX_node-n11.x"):
        answered = await scheduler.bus.client.subscribe(elsewhere)
        await scheduler.bus.client.publish(own, said, reply=elsewhere)
        with pytest.raises(TimeoutError):
            await answered.next_msg(timeout=0.5)
        await answered.unsubscribe()
    questions = {s for s in node_user("n2")[0] if s.startswith("query.")}
    assert questions == {f"{PullPermitFor.subject()}.n2", f"{KeepLines.subject()}.n2"}

    # What has gone from a node is none of its business any more.
    gone = newer(one, state="deleted")
    await scheduler.bus.publish(AppChanged(spec=gone))

    async def refused() -> bool:
        try:
            await ask("n1", image)
        except Forbidden:
            return True
        return False

    await eventually(refused, what="no more permits")
