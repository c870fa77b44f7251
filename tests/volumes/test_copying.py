"""Volumes that go from node to node: by blocks, of one moment, verified, and to nobody who was not told
to."""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import pytest
from contracts.copies import Ask, CopyClaim, blocks_subject, digest_of, keys_for_node, volume_key
from contracts.events import RolloutFinished
from contracts.ids import new_id
from node_agent.blocks import Image
from node_agent.commands import run
from node_agent.freezing import frozen
from node_agent.giving import ERROR
from runtime.bus import Bus
from runtime.seal import Seal

from tests.harness import bus_password, eventually
from tests.node_agent.conftest import next_release, spec
from tests.volumes.conftest import Fleet, volume

MIB = 1024 * 1024


async def test_a_copy_becomes_the_data_of_another_node_and_the_old_is_put_aside(fleet: Fleet) -> None:
    open_, secret = volume(64), volume(16, name="vault", path="/vault", encrypted=True)
    app = spec(volumes=(open_, secret))
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    data, vault = fleet.data("n1", open_), fleet.data("n1", secret)
    await fleet.exists(vault)
    words = os.urandom(3 * MIB)
    (data / "big").write_bytes(words)
    (vault / "a-telling-name").write_text("the customer's own words " * 1000)
    first = await fleet.copied(app, "n1", "n2")
    assert set(first.volumes) == {open_.id, secret.id}
    assert 3 <= first.sent_mb < 20, "what was never written is not sent"
    assert first.frozen_ms < 5000
    copy = fleet.volumes("n2") / "copies" / app.id
    raw = b"".join([(copy / f"{v.id}.ext4").read_bytes() for v in (open_, secret)])
    assert words[:4096] in raw
    assert b"customer's own words" not in raw, "it stays encrypted on its way and where it comes to"

    # The next one brings the difference alone, and is of its moment.
    (data / "note").write_text("later")
    second = await fleet.copied(app, "n1", "n2")
    assert second.sent_mb <= 6
    assert second.digest != first.digest

    # The last one follows the end of the instances.
    order = await fleet.order(app, "n1", "n2", "final")

    async def waits() -> bool:
        state = fleet.states.get(("n2", order.id))
        return state is not None and str(state.words).startswith("n1: its instances have not been told")

    await eventually(waits, what="a taker that waits for the end of what runs")
    (data / "last").write_text("the last word")
    await fleet.want("n1", app, 2, 0, moving=True)
    last = await fleet.complete(order, "n2")
    await fleet.forget(app, "n1", "n2")
    assert last.taken_at is not None

    keys = {secret.id: volume_key(fleet.harness.settings.seal_key_of("node/n1"), secret.id)}
    sealed = Seal(fleet.harness.settings.seal_key_of("node/n2")).close(
        json.dumps(keys), keys_for_node(app.id, "n2")
    )
    told = {
        "home": 1,
        "claim": CopyClaim(id=last.copy_id, taken_at=last.taken_at),
        "volume_keys": sealed,
    }
    await fleet.want("n2", app, 2, 1, **told)
    moved = await fleet.exists(fleet.data("n2", secret) / "a-telling-name")
    assert moved.read_text().startswith("the customer's own words")
    assert (fleet.data("n2", open_) / "big").read_bytes() == words
    assert (fleet.data("n2", open_) / "last").read_text() == "the last word"
    assert not copy.exists()
    assert fleet.aside("n1") == [], "what was here stays until the other place is known to run"
    await fleet.want("n1", app, 3, 0, home=1, proven=1)

    async def put_aside() -> bool:
        return len(fleet.aside("n1")) == 2

    await eventually(put_aside, what="the old volumes")
    # A release, a restart of the agent: it is this node's now.
    await fleet.harness.stop("n2")
    await fleet.start("n2")
    later = next_release(app)
    await fleet.want("n2", later, 4, 1, **{**told, "proven": 1})
    assert (fleet.data("n2", open_) / "last").read_text() == "the last word"


async def test_an_app_that_never_ran_goes_with_volumes_that_are_empty(fleet: Fleet) -> None:
    one = volume(16)
    app = spec(volumes=(one,), image="no-such-image:1")
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    told = await fleet.harness.event(RolloutFinished)
    assert not told.ok
    assert not (fleet.volumes("n1") / "files" / app.id).exists()
    await fleet.copied(app, "n1", "n2")
    await fleet.want("n1", app, 2, 0, moving=True)
    last = await fleet.copied(app, "n1", "n2", "final")
    assert last.volumes == (one.id,)
    assert last.taken_at is not None
    runs = app.model_copy(update={"image": "app:1"})
    await fleet.want("n2", runs, 2, 1, home=1, claim=CopyClaim(id=last.copy_id, taken_at=last.taken_at))
    assert list((await fleet.exists(fleet.data("n2", one))).iterdir()) == []


async def test_without_its_copy_a_node_makes_no_empty_volume(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,))
    await fleet.start("n1")
    claim = CopyClaim(id=new_id("cpy"), taken_at=fleet.harness.clock.now())
    await fleet.want("n1", app, 1, 1, home=2, claim=claim)
    told = await fleet.harness.event(RolloutFinished)
    assert "the copy of its volumes is not on this node" in str(told.reason)
    assert not (fleet.volumes("n1") / "files" / app.id).exists()


@pytest.mark.parametrize("killed", ["taker", "giver"])
async def test_whoever_is_killed_in_the_middle_the_copy_before_stays_and_the_next_is_finished(
    fleet: Fleet, killed: str
) -> None:
    one = volume(64)
    app = spec(volumes=(one,))
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    data = await fleet.exists(fleet.data("n1", one))
    (data / "note").write_text("first")
    first = await fleet.copied(app, "n1", "n2")
    await fleet.harness.stop("n1")
    await fleet.harness.stop("n2")
    fleet.settings["copy_mb_per_second"] = 4
    await fleet.start("n1", "n2")
    await fleet.exists(data)
    (data / "big").write_bytes(os.urandom(24 * MIB))
    order = await fleet.order(app, "n1", "n2")

    async def under_way() -> bool:
        state = fleet.states.get(("n2", order.id))
        return state is not None and state.sent_mb >= 6

    await eventually(under_way, what="a part of it")
    name, other = ("n2", "n1") if killed == "taker" else ("n1", "n2")
    await fleet.harness.stop(other)
    await fleet.crash(name)
    manifest = (fleet.volumes("n2") / "copies" / app.id / "copy.json").read_text()
    assert first.copy_id in manifest
    fleet.settings["copy_mb_per_second"] = 100
    await fleet.start(name, other)
    done = await fleet.complete(order, "n2")
    assert done.digest != first.digest
    if killed == "taker":
        assert done.sent_mb < 24, "what had come is not sent again"


async def test_who_was_not_told_to_take_it_gets_nothing(fleet: Fleet) -> None:
    one = volume()
    app = spec(volumes=(one,))
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    await fleet.exists(fleet.data("n1", one))
    wrong = await fleet.order(app, "n1", "n2", secret="another secret")

    async def refused() -> str | None:
        state = fleet.states.get(("n2", wrong.id))
        return None if state is None else state.words

    assert await eventually(refused, what="a refusal") == "n1: no such copy is to be given to you"
    right = await fleet.order(app, "n1", "n2")
    await fleet.complete(right, "n2")
    # The third knows everything but is not the one; in the name of another it cannot even ask.
    third = Bus(fleet.harness.settings.nats_url, "node-n3", bus_password("node-n3"), fleet.harness.telemetry)
    await third.connect(with_broker=False)
    try:
        ask = Ask(id=right.id, secret=right.secret, what="open").model_dump_json().encode()
        reply = await third.client.request(blocks_subject("n1", "n3"), ask, timeout=2)
        assert (reply.headers or {})[ERROR] == "no such copy is to be given to you"
        with pytest.raises(TimeoutError):
            await third.client.request(blocks_subject("n1", "n2"), ask, timeout=0.5)
        assert await third.bucket("copies").watch("n3.>").__anext__() is None
    finally:
        await third.close()
    # With the order its rights end.
    await fleet.forget(app, "n1", "n2")

    async def over() -> bool:
        own = Bus(
            fleet.harness.settings.nats_url, "node-n2", bus_password("node-n2"), fleet.harness.telemetry
        )
        await own.connect(with_broker=False)
        try:
            reply = await own.client.request(blocks_subject("n1", "n2"), ask, timeout=2)
            return ERROR in (reply.headers or {})
        finally:
            await own.close()

    await eventually(over, what="the end of its rights")


async def test_a_node_says_which_copies_it_has_and_one_that_is_gone_comes_again_as_a_whole(
    fleet: Fleet,
) -> None:
    one = volume(64)
    app = spec(volumes=(one,))
    fleet.settings["reconcile_seconds"] = 0.05
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    data = await fleet.exists(fleet.data("n1", one))
    (data / "big").write_bytes(os.urandom(20 * MIB))

    async def says(*taken: datetime | None) -> None:
        async def look() -> bool:
            held = fleet.held.get("n2")
            return held is not None and [copy.taken_at for copy in held.copies] == list(taken)

        await eventually(look, what=f"copies of {taken}")

    await says()
    first = await fleet.copied(app, "n1", "n2")
    await says(first.taken_at)
    copy = fleet.volumes("n2") / "copies" / app.id
    (copy / f"{one.id}.ext4").unlink()
    await says()
    # Not a difference to what is not there.
    again = await fleet.copied(app, "n1", "n2")
    assert again.sent_mb >= 20
    await says(again.taken_at)
    with Image(copy / f"{one.id}.ext4") as image:
        assert digest_of({one.id: image.digests()}) == again.digest


async def test_a_copy_of_what_is_written_all_the_time_is_of_one_moment(fleet: Fleet, tmp_path: Path) -> None:
    """Two files, always written in the same order: no copy may have the second without the first."""
    one = volume(64)
    app = spec(volumes=(one,))
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    data = await fleet.exists(fleet.data("n1", one))
    stop = asyncio.Event()

    def write(number: int) -> None:
        for name in ("before", "after"):
            with (data / name).open("ab", buffering=0) as file:
                file.write(f"{number:08}\n".encode() * 100)
                os.fsync(file.fileno())

    async def go_on() -> int:
        number = 0
        while not stop.is_set():
            number += 1
            await asyncio.to_thread(write, number)
        return number

    writing = asyncio.create_task(go_on())
    try:
        for _ in range(3):
            await fleet.copied(app, "n1", "n2")
    finally:
        stop.set()
    assert await writing > 20
    image = fleet.volumes("n2") / "copies" / app.id / f"{one.id}.ext4"
    await asyncio.to_thread(run, "e2fsck", "-f", "-n", str(image))
    sizes = []
    for name in ("before", "after"):
        out = tmp_path / name
        await asyncio.to_thread(run, "debugfs", "-R", f"dump /data/{name} {out}", str(image))
        sizes.append(out.stat().st_size)
    assert 0 <= sizes[0] - sizes[1] <= 900, sizes


async def test_volumes_that_stood_still_too_long_are_left_alone_for_a_while(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    freezes = []
    patience = 0.0

    def counted(mounts: Sequence[Path]) -> AbstractContextManager[None]:
        freezes.append(mounts)
        return frozen(mounts, patience)

    monkeypatch.setattr("node_agent.giving.frozen", counted)
    one = volume(16)
    app = spec(volumes=(one,))
    await fleet.start("n1", "n2")
    await fleet.want("n1", app, 1)
    await fleet.exists(fleet.data("n1", one))

    async def refused(words: str) -> None:
        async def look() -> bool:
            state = fleet.states.get(("n2", order.id))
            return state is not None and state.refused and words in str(state.words)

        await eventually(look, what=words)

    order = await fleet.order(app, "n1", "n2")
    await refused("left alone for 60 more minutes")
    assert len(freezes) == 1
    fleet.harness.clock.advance(3601)
    await refused("left alone for 120 more minutes")
    assert len(freezes) == 2
    patience = 20.0
    fleet.harness.clock.advance(7201)
    done = await fleet.complete(order, "n2")
    assert (len(freezes), done.refused) == (3, False)
