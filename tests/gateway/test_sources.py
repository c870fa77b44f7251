"""Uploads: whole or not at all, in parts the builder can ask for, and not kept for ever."""

import asyncio
import hashlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from contracts.errors import NotFound
from contracts.ids import new_id
from contracts.queries import SourcePartOf
from gateway import sources
from runtime.store import scoped

from tests.customer import Customer, Refused, archive
from tests.gateway.world import SOURCE, World, finished, started, succeeded
from tests.harness import eventually

LARGE = archive({"noise.bin": os.urandom(1_000_000).hex(), "app.py": "print('hello')\n"})


async def kept(here: World, app: str) -> list[str]:
    rows = await here.host.runtime.store.read(
        scoped(
            "select s.id from source s where scope.organization is not null and s.workload = %s order by s.id"
        ),
        ("*", app),
    )
    return [row[0] for row in rows]


async def parts(here: World, app: str) -> int:
    rows = await here.host.runtime.store.read(
        scoped(
            "select count(*) from source_part p join source s on s.id = p.source "
            "where scope.organization is not null and s.workload = %s"
        ),
        ("*", app),
    )
    return int(rows[0][0])


async def test_the_builder_gets_back_what_was_sent(here: World, customer: Customer) -> None:
    app = await customer.create("roundtrip")
    assert len(LARGE) > 2 * sources.PART
    view = await customer.upload(app, LARGE)
    assert view == {
        "id": view["id"],
        "sha256": hashlib.sha256(LARGE).hexdigest(),
        "size": len(LARGE),
        "files": 2,
    }
    bus = await here.harness.everybody()
    received, index, last = b"", 0, False
    while not last:
        part = await bus.ask(SourcePartOf(source=view["id"], index=index))
        assert len(part.data) <= sources.PART
        received, index, last = received + part.data, index + 1, part.last
    assert received == LARGE
    for source, beyond in ((view["id"], index), (new_id("src"), 0)):
        with pytest.raises(NotFound):
            await bus.ask(SourcePartOf(source=source, index=beyond))
    deployment = await customer.deploy(app)
    request = await here.requested(deployment)
    assert request.source.model_dump() == {
        "kind": "upload",
        "source": view["id"],
        "sha256": view["sha256"],
        "size": view["size"],
    }


async def raw_upload(here: World, customer: Customer, app: str, body: bytes) -> socket.socket:
    """Promises the whole, sends `body`, and keeps the line open."""
    host, port = here.url.removeprefix("http://").split(":")
    line = socket.create_connection((host, int(port)))
    head = "".join(f"{name}: {value}\r\n" for name, value in customer.headers.items())
    line.sendall(
        f"POST /api/paas/apps/{app}/source HTTP/1.1\r\nHost: x\r\n{head}"
        f"Content-Length: {len(LARGE)}\r\n\r\n".encode()
    )
    line.setblocking(False)
    await asyncio.get_running_loop().sock_sendall(line, body)
    return line


async def test_an_upload_that_is_cut_off_leaves_nothing(here: World, customer: Customer) -> None:
    app = await customer.create("cut-off")
    temporary = Path(f"/proc/{os.getpid()}/fd")

    def open_files() -> set[str]:
        found = set()
        for descriptor in temporary.iterdir():
            try:
                target = os.readlink(descriptor)
            except FileNotFoundError:
                continue
            if "(deleted)" in target:
                found.add(target)
        return found

    before = open_files()
    line = await raw_upload(here, customer, app, LARGE[:-1000])

    async def spooled() -> bool:
        return bool(open_files() - before)

    await eventually(spooled, what="the archive in a nameless file")
    # Nothing is in the database while it comes: no half of it, and no connection held.
    assert await kept(here, app) == []
    line.close()

    async def gone() -> bool:
        return not open_files() - before

    await eventually(gone, what="the end of the upload")
    assert await kept(here, app) == []
    await customer.upload(app, LARGE)
    assert len(await kept(here, app)) == 1


async def test_slow_uploads_keep_nobody_waiting(here: World, customer: Customer) -> None:
    """More of them than there are connections to the database."""
    app = await customer.create("slow-lines")
    lines = [await raw_upload(here, customer, app, LARGE[:70_000]) for _ in range(12)]
    try:
        async with asyncio.timeout(10):
            await customer.upload(app, SOURCE)
            await customer.create("not-waiting")
    finally:
        for line in lines:
            line.close()


async def test_a_failure_while_it_is_stored_leaves_nothing(
    here: World, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = await customer.create("half-stored")
    # The second part cannot be written, as when the database dies in the middle of it.
    monkeypatch.setattr(
        sources,
        "_ADD_PART",
        'insert into source_part (source, "index", organization, data) '
        "values (%s, (1 / (1 - %s))::int, %s, %b)",
    )
    with pytest.raises(Refused) as refused:
        await customer.upload(app, LARGE)
    assert refused.value.status == 500
    monkeypatch.undo()
    assert await kept(here, app) == []
    assert await parts(here, app) == 0
    await customer.upload(app, LARGE)
    assert await parts(here, app) == -(-len(LARGE) // sources.PART)


async def test_an_app_deleted_meanwhile_gets_no_source(here: World, customer: Customer) -> None:
    app = await customer.create("meanwhile")
    line = await raw_upload(here, customer, app, LARGE[:-10])
    await customer.call("DELETE", f"/api/paas/apps/{app}")
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line, LARGE[-10:])
    answer = await loop.sock_recv(line, 65536)
    line.close()
    assert b"404" in answer.splitlines()[0]
    assert await kept(here, app) == []


async def test_old_sources_go_and_needed_ones_stay(here: World, customer: Customer) -> None:
    app = await customer.create("prolific")
    first = (await customer.upload(app, SOURCE))["id"]
    deployment = await customer.deploy(app)
    ids = [first] + [(await customer.upload(app, SOURCE))["id"] for _ in range(5)]
    desk: Any = here.host.service.http.state.desk  # type: ignore[union-attr]
    await sources.prune(desk)
    # Three are kept, and the one that waits for its build.
    assert await kept(here, app) == [first, *ids[-3:]]
    request = await here.requested(deployment)
    await here.say(started(request))
    await sources.prune(desk)
    assert first in await kept(here, app)
    await here.say(finished(request, succeeded()))
    await sources.prune(desk)
    assert await kept(here, app) == ids[-3:]
    assert await parts(here, app) == 3
