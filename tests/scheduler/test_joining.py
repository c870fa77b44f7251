"""Machines that join: their tokens, their keys, what a key opens on the bus, and how one is put out."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import nats
import pytest
from contracts.errors import BerthError, Conflict, Forbidden, NotFound, Unavailable
from contracts.ids import new_id
from contracts.queries import (
    JoinTokenMade,
    JoinTokenRevoked,
    JoinTokens,
    NodeJoined,
    NodeOf,
    NodeRemoved,
)
from nats.aio.client import Client
from runtime.issuer import Request
from runtime.permissions import node_name
from runtime.tasks import end
from scheduler.door import LINGER, Door

from tests.harness import eventually
from tests.scheduler.conftest import Stage
from tests.scheduler.samples import heartbeat

ADMIN = new_id("usr")
KEY = "k1-" + "0123456789abcdef" * 3
OTHER_KEY = "k2-" + "0123456789abcdef" * 3


async def token(stage: Stage, **choices: object) -> str:
    order = JoinTokenMade.model_validate({"region": "eu", "created_by": ADMIN, **choices})
    return (await stage.bus.ask(order)).token


def join(token: str, key: str = KEY, node: str | None = None) -> NodeJoined:
    return NodeJoined(token=token, key=key, node=node, address="192.0.2.1", machine={"os": "debian 12"})


@asynccontextmanager
async def connected(stage: Stage, node: str, key: str) -> AsyncIterator[tuple[Client, list[str]]]:
    """As that node, whatever it may say; and what the server refused it."""
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    client = await nats.connect(
        stage.harness.settings.nats_url,
        user=node_name(node),
        password=key,
        inbox_prefix=f"_INBOX_{node_name(node)}".encode(),
        error_cb=note,
        allow_reconnect=False,
        connect_timeout=2,
    )
    try:
        yield client, refused
    finally:
        await client.close()


async def turned_away(stage: Stage, user: str, key: str) -> bool:
    """By hand: the client library leaves a connection open that was refused."""
    address = stage.harness.settings.nats_url.removeprefix("nats://")
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        await reader.readline()
        words = json.dumps({"user": user, "pass": key, "verbose": False})
        writer.write(f"CONNECT {words}\r\nPING\r\n".encode())
        async with asyncio.timeout(30):
            answer = await reader.readline()
        assert answer.startswith((b"PONG", b"-ERR 'Authorization Violation'")), answer
        return not answer.startswith(b"PONG")
    finally:
        writer.close()
        await writer.wait_closed()


# --- tokens --------------------------------------------------------------------------------------------


@pytest.mark.promise("R3.1")
async def test_a_token_is_told_once_and_kept_as_a_digest(scheduler: Stage) -> None:
    text = await token(scheduler, node="west-1", labels={"disk": "nvme"})
    page = await scheduler.bus.ask(JoinTokens())
    (info,) = page.tokens
    assert (info.node, info.labels, info.used_at) == ("west-1", {"disk": "nvme"}, None)
    assert (info.expires_at - info.created_at).total_seconds() == 3600
    rows = await scheduler.runtime.store.read("select to_jsonb(t)::text from join_token t")
    assert text.removeprefix("berth_") not in rows[0][0]


async def test_a_token_makes_one_node_and_answers_the_same_machine_again(scheduler: Stage) -> None:
    text = await token(scheduler, labels={"disk": "nvme"})
    joined = await scheduler.bus.ask(join(text, node="n1"))
    assert (joined.node, joined.region) == ("n1", "eu")
    assert joined.seal_key == scheduler.harness.settings.seal_key_of_node("n1")
    # The answer was lost, and the machine asks again.
    assert await scheduler.bus.ask(join(text, node="n1")) == joined
    with pytest.raises(Forbidden):
        await scheduler.bus.ask(join(text, OTHER_KEY, node="n2"))
    rows = await scheduler.runtime.store.read("select to_jsonb(k)::text from node_key k")
    assert len(rows) == 1
    assert KEY not in rows[0][0]


async def test_two_machines_at_once_make_one_node(scheduler: Stage) -> None:
    text = await token(scheduler)
    orders = [join(text, f"{KEY}{n}", node=f"m{n}") for n in range(6)]
    outcomes = await asyncio.gather(*map(scheduler.bus.ask, orders), return_exceptions=True)
    assert sorted(type(o).__name__ for o in outcomes) == ["Forbidden"] * 5 + ["Joined"]


async def test_every_bad_token_gets_the_same_answer(scheduler: Stage) -> None:
    revoked, expired, used = (
        await token(scheduler),
        await token(scheduler, seconds=60),
        await token(scheduler),
    )
    listed = await scheduler.bus.ask(JoinTokens())
    await scheduler.bus.ask(JoinTokenRevoked(token=listed.tokens[-1].id))
    await scheduler.bus.ask(join(used, node="n1"))
    scheduler.harness.clock.advance(61)
    words = set()
    for bad in (revoked, expired, used, "berth_guess", ""):
        with pytest.raises(Forbidden) as refusal:
            await scheduler.bus.ask(join(bad, OTHER_KEY, node="n9"))
        words.add(refusal.value.message)
    assert len(words) == 1


async def test_a_name_is_given_once_and_the_token_is_not_lost_over_it(scheduler: Stage) -> None:
    await scheduler.joins("n1")
    text = await token(scheduler)
    with pytest.raises(Conflict):
        await scheduler.bus.ask(join(text, node="n1"))
    assert (await scheduler.bus.ask(join(text, node="n4"))).node == "n4"
    with pytest.raises(Conflict):
        await token(scheduler, node="n4")


# --- what a key opens ------------------------------------------------------------------------------------


async def test_a_machine_is_let_in_with_its_own_key_only(scheduler: Stage) -> None:
    for node, key in (("j1", KEY), ("j2", OTHER_KEY)):
        await scheduler.bus.ask(join(await token(scheduler), key, node=node))
    assert not await turned_away(scheduler, "node-j1", KEY)
    for node, key in (("j1", OTHER_KEY), ("j2", KEY), ("j3", KEY), ("j1", ""), ("*", KEY), (">", KEY)):
        assert await turned_away(scheduler, f"node-{node}", key), (node, key)
    # Nor as anybody of the platform.
    for user in ("j1", "scheduler", "gateway", "cutter", ""):
        assert await turned_away(scheduler, user, KEY), user


async def test_a_node_neither_reads_nor_writes_anything_of_another(scheduler: Stage) -> None:
    for node, key in (("j1", KEY), ("j2", OTHER_KEY)):
        await scheduler.bus.ask(join(await token(scheduler), key, node=node))
    desired, endpoints = scheduler.bus.bucket("desired"), scheduler.bus.bucket("endpoints")
    app = new_id("app")
    await desired.put(f"j2.{app}", b"secret of j2")
    await desired.put(f"j1.{app}", b"mine")
    await endpoints.put(f"{app}.j2", b"theirs")
    async with connected(scheduler, "j1", KEY) as (client, refused):

        async def says(subject: str) -> bool:
            """Whether the server lets it pass."""
            refused.clear()
            await client.publish(subject, b"forged")
            await client.flush()
            await asyncio.sleep(0.01)
            return not refused

        async def hears(subject: str) -> bool:
            refused.clear()
            subscription = await client.subscribe(subject)
            await client.flush()
            await asyncio.sleep(0.01)
            heard = not refused
            await subscription.unsubscribe()
            return heard

        assert await says("node.heartbeat.j1")
        assert await says(f"$KV.endpoints.{app}.j1")
        assert await hears("_INBOX_node-j1.x")
        for subject in (
            "node.heartbeat.j2",
            "instance.started.j2",
            "instance.stopped.j2",
            "rollout.finished.j2",
            "job.finished.j2",
            "job.output.j2",
            f"$KV.endpoints.{app}.j2",
            f"$KV.desired.j2.{app}",
            f"$KV.desired.j1.{app}",
            f"$KV.routes.{app}",
            "$KV.jobs.j2.x",
            "_INBOX_node-j2.x",
            "_INBOX_scheduler.x",
            "app.changed",
            "query.scheduler.nodes",
            "query.scheduler.join",
            "$JS.API.STREAM.MSG.GET.KV_desired",
            f"$JS.API.DIRECT.GET.KV_desired.$KV.desired.j2.{app}",
            "$JS.API.STREAM.DELETE.KV_desired",
            "$JS.API.STREAM.PURGE.KV_desired",
            "$JS.API.CONSUMER.CREATE.KV_desired",
            "$JS.API.CONSUMER.CREATE.KV_desired.spy",
            "$JS.API.CONSUMER.CREATE.KV_desired.spy.$KV.desired.j2.>",
            "$JS.API.CONSUMER.CREATE.KV_desired.spy.$KV.desired.*.>",
            "$JS.API.CONSUMER.CREATE.KV_jobs.spy.$KV.jobs.j2.>",
            "$JS.API.CONSUMER.CREATE.EVENTS.spy.app.changed",
            "$JS.API.CONSUMER.DURABLE.CREATE.KV_desired.spy",
            "$JS.API.CONSUMER.MSG.NEXT.KV_desired.spy",
            "$SYS.REQ.USER.AUTH",
            "$SYS.REQ.SERVER.PING",
        ):
            assert not await says(subject), subject
        for subject in (
            ">",
            "node.heartbeat.j2",
            "node.heartbeat.>",
            "$KV.desired.j2.>",
            "$KV.desired.>",
            "$KV.endpoints.>",
            "_INBOX_node-j2.>",
            "_INBOX_gateway.>",
            "app.>",
            "query.>",
            "$SYS.REQ.USER.AUTH",
            "$SYS.>",
        ):
            assert not await hears(subject), subject
        # The subject is its own and the words in it are not: the server compares them.
        stolen = await consume(client, "j1", {"filter_subject": "$KV.desired.j2.>"})
        assert "error" in stolen
        stolen = await consume(client, "j1", {"filter_subjects": ["$KV.desired.j2.>"]})
        assert "error" in stolen
        assert "error" not in await consume(client, "j1", {"filter_subject": "$KV.desired.j1.>"})
    assert (await endpoints.get(f"{app}.j2")).value == b"theirs"  # type: ignore[union-attr]
    assert (await desired.get(f"j2.{app}")).value == b"secret of j2"  # type: ignore[union-attr]


async def consume(client: Client, node: str, config: dict[str, object]) -> dict[str, object]:
    words = {
        "stream_name": "KV_desired",
        "config": {
            "name": "spy",
            "ack_policy": "none",
            "deliver_policy": "all",
            "mem_storage": True,
            **config,
        },
    }
    subject = f"$JS.API.CONSUMER.CREATE.KV_desired.spy.$KV.desired.{node}.>"
    answer = await client.request(subject, json.dumps(words).encode(), timeout=2)
    found: dict[str, object] = json.loads(answer.data)
    return found


async def test_what_a_stranger_says_at_the_door_keeps_nobody_out(scheduler: Stage) -> None:
    await scheduler.bus.ask(join(await token(scheduler), KEY, node="j1"))
    for user in ("node-\0", "node-a b", "node-" + "x" * 500):
        began = time.monotonic()
        refused, let_in = await asyncio.gather(
            turned_away(scheduler, user, KEY), turned_away(scheduler, "node-j1", KEY)
        )
        assert (refused, let_in) == (True, False)
        assert time.monotonic() - began < 2


async def test_one_who_cannot_be_judged_keeps_nobody_out(
    scheduler: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scheduler.bus.ask(join(await token(scheduler), KEY, node="j1"))
    answers = Door._answers

    async def broken(self: Door, requests: list[Request]) -> list[bytes]:
        if any(request.user == "node-bad" for request in requests):
            raise ZeroDivisionError
        return await answers(self, requests)

    monkeypatch.setattr(Door, "_answers", broken)
    unanswered = [asyncio.create_task(turned_away(scheduler, "node-bad", KEY)) for _ in range(3)]
    try:
        tried = [turned_away(scheduler, "node-j1", KEY) for _ in range(3)]
        assert await asyncio.gather(*tried) == [False] * 3
    finally:
        await end(unanswered)


# --- who is removed --------------------------------------------------------------------------------------


async def test_a_removed_node_is_cut_off_within_a_second(scheduler: Stage) -> None:
    await scheduler.bus.ask(join(await token(scheduler), KEY, node="j1"))
    await scheduler.bus.ask(join(await token(scheduler), OTHER_KEY, node="j2"))
    app = new_id("app")
    async with (
        connected(scheduler, "j1", KEY) as (client, _),
        connected(scheduler, "j2", OTHER_KEY) as (bystander, _),
    ):
        await client.publish("node.heartbeat.j1", heartbeat("j1").model_dump_json().encode())
        await eventually(lambda: known(scheduler, "j1"), what="the node")
        await scheduler.bus.bucket("desired").put(f"j1.{app}", b"{}")
        began = time.monotonic()
        removed = await scheduler.bus.ask(NodeRemoved(node="j1"))
        await eventually(lambda: is_out(client), every=0.002, what="the end of its connection")
        assert time.monotonic() - began < 1
        assert removed.connections == 1
        assert await turned_away(scheduler, "node-j1", KEY)
        assert bystander.is_connected
    assert await scheduler.bus.bucket("desired").get(f"j1.{app}") is None
    with pytest.raises(NotFound):
        await scheduler.bus.ask(NodeOf(node="j1"))
    with pytest.raises(NotFound):
        await scheduler.bus.ask(NodeRemoved(node="j1"))
    # The machine may join again, with a new token.
    await scheduler.bus.ask(join(await token(scheduler), OTHER_KEY, node="j1"))
    assert not await turned_away(scheduler, "node-j1", OTHER_KEY)


async def is_out(client: Client) -> bool:
    return not client.is_connected


async def known(stage: Stage, node: str) -> bool:
    try:
        await stage.bus.ask(NodeOf(node=node))
    except BerthError:
        return False
    return True


async def in_vain(_: Door, node: str) -> int:
    raise Unavailable(f"nobody answers about {node}")


async def test_a_removed_node_that_cannot_be_cut_off_stays_removed_until_it_is(
    scheduler: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scheduler.bus.ask(join(await token(scheduler), KEY, node="j1"))
    door, cut = Door(scheduler.runtime), Door.cut
    async with connected(scheduler, "j1", KEY) as (client, _):
        monkeypatch.setattr(Door, "cut", in_vain)
        await scheduler.bus.ask(NodeRemoved(node="j1"))
        scheduler.harness.clock.advance(LINGER.total_seconds() + 10)
        await door.watch()
        await client.publish("node.heartbeat.j1", heartbeat("j1").model_dump_json().encode())
        await scheduler.bus.report(heartbeat("n1"))
        await eventually(lambda: known(scheduler, "n1"), what="another node")
        assert not await known(scheduler, "j1")

        monkeypatch.setattr(Door, "cut", cut)
        await door.watch()
        await eventually(lambda: is_out(client), what="the end of its connection")
    assert await scheduler.runtime.store.read("select node from node_key") == []


async def test_nobody_takes_the_name_of_a_removed_machine_that_is_not_cut_off_yet(
    scheduler: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scheduler.bus.ask(join(await token(scheduler), KEY, node="j1"))
    door, cut = Door(scheduler.runtime), Door.cut
    async with connected(scheduler, "j1", KEY) as (client, _):
        monkeypatch.setattr(Door, "cut", in_vain)
        await scheduler.bus.ask(NodeRemoved(node="j1"))
        again = join(await token(scheduler), OTHER_KEY, node="j1")
        with pytest.raises(Unavailable, match="not cut off yet"):
            await scheduler.bus.ask(again)
        monkeypatch.setattr(Door, "cut", cut)
        await door.watch()
        await eventually(lambda: is_out(client), what="the end of its connection")
        assert (await scheduler.bus.ask(again)).node == "j1", "with the same token"
