"""Requests are counted by the ingress, app by app, and by nothing a request or an app can say."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from contracts.errors import Unavailable
from contracts.ids import new_id
from contracts.reports import NodeTraffic
from embedded.traefik import Traefik
from node_agent.ingress import TraefikProxy
from node_agent.routes_file import Served
from node_agent.traffic import Count, Traffic, connected, counts_in
from runtime.clock import SystemClock

APP, OTHER = f"app_{'0' * 26}", f"app_{'1' * 26}"


def test_what_the_ingress_says_is_read() -> None:
    def series(name: str, value: object, *, code: int = 200, app: str = APP, more: str = "") -> str:
        protocol = "websocket" if code == 101 else "http"
        labels = f'code="{code}",method="GET",protocol="{protocol}",service="{app}@file"{more}'
        return f"traefik_service_{name}{{{labels}}} {value}\n"

    text = (
        "process_start_time_seconds 1.7e+09\n"
        + series("requests_total", 90)
        + series("requests_total", 7, code=500)
        + series("requests_total", "1e+06", app=OTHER)
        + series("requests_total", 1, code=101)
        + series("request_duration_seconds_sum", 3600.5, code=101)
        + series("request_duration_seconds_sum", 4.5)
        + series("request_duration_seconds_bucket", 80, more=',le="1"')
        + series("request_duration_seconds_bucket", 90, more=',le="+Inf"')
        + series("request_duration_seconds_count", 90)
        + series("requests_total", 5, app=f"{APP}-n2")
    )
    assert counts_in(text.encode()) == (
        "1.7e+09",
        {APP: Count(98, failed=7, slow=10, seconds=4.5, series=3), OTHER: Count(1_000_000, series=1)},
    )
    with pytest.raises(Unavailable):
        counts_in(b"404 page not found")


def test_an_open_connection_is_somebodys_unless_it_is_our_own() -> None:
    line = (
        "   {n}: 0100E00A:9C4{n} 0{n}00E00A:1F90 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1"
    )
    table = "  sl  local_address rem_address   st\n" + "\n".join(
        line.format(n=n, state=state, inode=100 + n)
        for n, state in ((2, "01"), (3, "06"), (4, "01"), (5, "01"))
    )
    endpoints = {"10.224.0.2:8080": "a", "10.224.0.3:8080": "b", "10.224.0.4:8080": "c", "10.224.0.5:81": "d"}
    assert connected(endpoints, table, frozenset({"104"})) == {"a"}


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """An instance that answers with the status its path names."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        status = path[1:4] if path[1:4].isdigit() else "200"
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


async def ask(traefik: Traefik, hostname: str, path: str, headers: str = "") -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", traefik.port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {hostname}\r\n{headers}Connection: close\r\n\r\n".encode())
    said = await reader.read()
    writer.close()
    return said


async def test_each_app_gets_what_was_asked_of_it(
    ingress: Traefik, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.traffic._MOST_SERIES", 5)
    monkeypatch.setattr("node_agent.traffic._REST", 0)
    proxy = TraefikProxy(ingress.routes, f"http://127.0.0.1:{ingress.port}", SystemClock())
    await proxy.open()
    one, other = new_id("app"), new_id("app")
    await proxy.publish(Served(one, ("one.localhost",), (address,)))
    await proxy.publish(Served(other, ("other.localhost",), (address,)))
    traffic, said = Traffic("n1", proxy, SystemClock()), list[NodeTraffic]()
    crowded: list[str] = []
    traffic.on_crowded(crowded.append)

    async def report() -> dict[str, tuple[int, int]]:
        async def take(report: NodeTraffic) -> None:
            said.append(report)

        await traffic.report(take)
        # The ingress is every test's, and forgets what others asked of theirs in its own time.
        counts = [count for report in said[-1:] for count in report.counts]
        return {c.workload: (c.requests, c.failed) for c in counts if c.workload in (one, other)}

    assert await traffic.look()
    for path in ("/200", "/200", "/503"):
        await ask(ingress, "one.localhost", path)
    # Nothing that a request says makes it another app's; and nobody but the agent reads the counts.
    lie = f"X-Forwarded-Host: other.localhost\r\nService: {other}@file\r\n"
    await ask(ingress, "one.localhost", f'/200?service="{other}@file"', lie)
    assert b" 404 " in await ask(ingress, "localhost", "/metrics")
    assert b"traefik_service" not in await ask(ingress, "one.localhost", "/metrics")
    counts = await report()
    assert counts == {one: (5, 1)}
    assert traffic.idle_seconds(one) < 5
    # Said again, it is the same; and nothing new makes it no younger.
    before = traffic.idle_seconds(one)
    assert await report() == counts
    assert traffic.idle_seconds(one) > before
    assert len({r.boot for r in said}) == 1
    # One that answers in a great many ways would fill the ingress's memory: it is not counted any more.
    for status in range(210, 216):
        await ask(ingress, "other.localhost", f"/{status}")
    assert await traffic.look()
    assert crowded == [other]
    assert not traffic.counted(other)
    await proxy.publish(Served(other, ("other.localhost",), (address,), counted=False))
    assert b" 218 " in await ask(ingress, "other.localhost", "/218")
    # Traefik drops what it kept when it is asked twice.
    await proxy.metrics()
    assert other.encode() not in await proxy.metrics()
    assert await report() == {one: (5, 1)}
