"""Buckets and permissions: a watch says everything and heals; a user can do what its table says."""

import asyncio
from collections.abc import AsyncIterator

import nats
import pytest
from contracts import sessions
from contracts.errors import Conflict, TooLarge
from runtime.bucket import Change
from runtime.bus import Bus
from runtime.permissions import PUBLISHES, SHARED, node_name
from runtime.run import entry_points
from runtime.secrets import derive
from runtime.streams import declare

from tests.harness import SECRET, Harness


async def connected(harness: Harness, user: str) -> Bus:
    bus = Bus(harness.settings.nats_url, user, derive(SECRET, f"nats/{user}"), harness.telemetry)
    await bus.connect(with_broker=False)
    harness._buses.append(bus)
    return bus


async def take(changes: AsyncIterator[Change | None]) -> Change | None:
    async with asyncio.timeout(30):
        return await anext(changes)


async def test_a_value_too_large_for_the_bus_is_no_outage(harness: Harness) -> None:
    desired = (await connected(harness, "scheduler")).bucket("desired")
    with pytest.raises(TooLarge, match="has 1050000 bytes"):
        await desired.put("local.one", b"x" * 1_050_000)
    await desired.put("local.one", b"1")


async def test_a_watch_begins_with_what_is_there_and_goes_on_with_what_changes(harness: Harness) -> None:
    desired = (await connected(harness, "scheduler")).bucket("desired")
    await desired.put("local.one", b"1")
    await desired.put("local.one", b"2")
    await desired.put("other.two", b"x")
    changes = (await connected(harness, node_name("local"))).bucket("desired").watch("local.>")
    first = await take(changes)
    assert first is not None
    assert (first.key, first.value) == ("local.one", b"2")
    assert await take(changes) is None
    await desired.put("local.three", b"3")
    third = await take(changes)
    assert third is not None
    assert (third.key, third.value) == ("local.three", b"3")
    await desired.delete("local.three")
    gone = await take(changes)
    assert gone is not None
    assert (gone.key, gone.value) == ("local.three", None)


async def test_a_lost_race_is_a_conflict(harness: Harness) -> None:
    desired = (await connected(harness, "scheduler")).bucket("desired")
    revision = await desired.create("local.one", b"1")
    with pytest.raises(Conflict):
        await desired.create("local.one", b"again")
    await desired.update("local.one", b"2", last=revision)
    with pytest.raises(Conflict):
        await desired.update("local.one", b"3", last=revision)
    entry = await desired.get("local.one")
    assert entry is not None
    assert entry.value == b"2"
    assert await desired.get("local.nothing") is None
    assert await desired.keys("local.") == ["local.one"]


async def test_a_watch_survives_the_loss_of_its_bucket(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A watch that hears nothing for three heartbeats begins anew.
    monkeypatch.setattr("runtime.bucket._HEARTBEAT", 1.0)
    bus = await connected(harness, "scheduler")
    await bus.bucket("desired").put("local.one", b"1")
    changes = (await connected(harness, node_name("local"))).bucket("desired").watch("local.>")
    assert await take(changes) is not None
    assert await take(changes) is None
    await harness.client.jetstream().delete_key_value("desired")
    await declare(harness.client.jetstream())
    await bus.bucket("desired").put("local.one", b"2")
    async with asyncio.timeout(20):
        while True:
            change = await anext(changes)
            if change is not None and change.value == b"2":
                break


async def test_a_node_cannot_read_or_write_for_another(harness: Harness) -> None:
    scheduler = await connected(harness, "scheduler")
    await scheduler.bucket("desired").put("n1.secret", b"of node one")
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error).lower())

    user = node_name("local")
    client = await nats.connect(
        harness.settings.nats_url, user=user, password=derive(SECRET, f"nats/{user}"), error_cb=note
    )
    try:
        attempts = [
            "node.heartbeat.n1",
            "instance.started.n1",
            "$KV.desired.n1.secret",
            "$KV.desired.local.anything",
            "$KV.endpoints.app.n1",
            "$KV.routes.shop.localhost",
            "$KV.places.app",
            "$KV.peers.local",
            "node.peer.n1",
            "credit.granted",
            "query.gateway.workloads",
            "$JS.API.CONSUMER.CREATE.KV_desired",
            "$JS.API.CONSUMER.CREATE.KV_desired.spy.$KV.desired.n1.>",
            "$JS.API.STREAM.MSG.GET.KV_desired",
            "$JS.API.STREAM.DELETE.EVENTS",
            "$KV.jobs.n1.job",
            "$KV.jobs.local.job",
            "$JS.API.CONSUMER.CREATE.KV_jobs.spy.$KV.jobs.n1.>",
            "job.finished.n1",
            "job.output.n1",
            "job.requested",
            # The other end of a terminal is nobody's but the gateway's, and each node has its own.
            sessions.to_node("local", "ses"),
            sessions.to_node("n1", "ses"),
            sessions.from_node("n1", "ses"),
        ]
        for subject in attempts:
            await client.publish(subject, b"{}")
        spied = (
            *("$KV.desired.>", "$KV.jobs.>", "instance.>", "_INBOX.>", "_INBOX_node-n1.>", "query.>"),
            *(sessions.to_node("n1", "*"), sessions.from_node("local", "*"), "session.>"),
        )
        for subject in spied:
            await client.subscribe(subject)
        await client.flush()
        await asyncio.sleep(0.2)
    finally:
        await client.close()
    assert len([r for r in refused if "permissions violation" in r]) == len(attempts) + len(spied)
    assert await scheduler.bucket("desired").keys("local.") == []


async def test_every_node_reads_where_hostnames_lead(harness: Harness) -> None:
    everybody = await harness.everybody()
    node = await connected(harness, node_name("local"))
    for bucket in SHARED:
        await everybody.bucket(bucket).put("app.n1", b"said")
        changes = node.bucket(bucket).watch()
        change = await take(changes)
        assert change is not None
        assert (change.key, change.value) == ("app.n1", b"said")


def test_every_service_with_tables_has_a_user_of_its_own() -> None:
    assert set(PUBLISHES) | {"node-agent"} == set(entry_points())
