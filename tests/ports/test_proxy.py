"""What every ingress keeps to, on the real Traefik: a change is live when it says so and costs no request."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from contracts.errors import Unavailable
from contracts.ids import new_id
from embedded.traefik import Traefik
from node_agent.ingress import Proxy, TraefikProxy
from node_agent.routes_file import HEADER, Served
from runtime.clock import SystemClock

from bench.processes import cpu_seconds
from tests.harness import free_port
from tests.ports.engines import FakeHands, blueprint
from tests.ports.fake_engine import FakeEngine
from tests.ports.web import Load, get, head

HOST = "app.example.com"


@pytest.fixture(scope="module")
def traefik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traefik]:
    server = Traefik(tmp_path_factory.mktemp("proxy"), free_port(), free_port())
    server.start()
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def proxy_for(traefik: Traefik, patience: float = 10.0) -> TraefikProxy:
    return TraefikProxy(traefik.routes, f"http://127.0.0.1:{traefik.port}", SystemClock(), patience)


@pytest.fixture
async def proxy(traefik: Traefik) -> Proxy:
    for path in traefik.routes.iterdir():
        path.unlink()
    made = proxy_for(traefik)
    await made.open()
    return made


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    made = FakeEngine()
    yield made
    await made.end()


async def instances(engine: FakeEngine, number: int) -> list[tuple[str, str]]:
    """Names and addresses of instances that answer with their name."""
    made = []
    for _ in range(number):
        instance = await engine.create(blueprint(FakeHands()))
        await engine.start(instance.identity.instance)
        made.append((instance.identity.instance, f"{instance.address}:8080"))
    return made


@pytest.mark.promise("R13.2")
async def test_it_serves_what_was_published_the_moment_it_says_so(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik
) -> None:
    workload = new_id("app")
    for name, address in await instances(engine, 5):
        await proxy.publish(Served(workload, (HOST, "www.example.org"), (address,)))
        for host in (HOST, "www.example.org", HOST.upper()):
            status, body = await get(traefik.port, host)
            assert (status, body.split()[0]) == (200, name)
    for unknown in ("example.com", "www.example.com", "ww.example.org", f"x.{HOST}", "ap"):
        assert (await get(traefik.port, unknown))[0] == 404


async def test_a_change_costs_the_proxy_no_new_key(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik
) -> None:
    """Where Traefik has no certificate it makes an RSA key at every change: some 80 ms of a core each."""
    workload, changes = new_id("app"), 20
    addresses = [address for _, address in await instances(engine, 2)]
    await proxy.publish(Served(workload, (HOST,), (addresses[0],)))
    pid = traefik.daemon.pid()
    assert pid is not None
    before = cpu_seconds(pid)
    for number in range(1, changes + 1):
        await proxy.publish(Served(workload, (HOST,), (addresses[number % 2],)))
    assert cpu_seconds(pid) - before < 0.04 * changes


@pytest.mark.promise("R17.3")
async def test_requests_go_to_each_in_turn(proxy: Proxy, engine: FakeEngine, traefik: Traefik) -> None:
    running = await instances(engine, 3)
    await proxy.publish(Served(new_id("app"), (HOST,), tuple(address for _, address in running)))
    turns = [(await get(traefik.port, HOST))[1].split()[0] for _ in range(9)]
    everybody = {name for name, _ in running}
    assert set(turns[:3]) == set(turns[3:6]) == set(turns[6:]) == everybody


async def test_switching_costs_no_request(proxy: Proxy, engine: FakeEngine, traefik: Traefik) -> None:
    engine.answer_seconds = 0.002
    workload = new_id("app")
    ((current, address),) = await instances(engine, 1)
    await proxy.publish(Served(workload, (HOST,), (address,)))
    async with Load(traefik.port, HOST, connections=8) as load:
        for _ in range(8):
            ((following, address),) = await instances(engine, 1)
            await proxy.publish(Served(workload, (HOST,), (address,)))
            # What had been routed before is answered; what comes now goes elsewhere.
            await asyncio.sleep(0.05)
            await engine.remove(current)
            current = following
            await load.more(250)
    assert load.total > 2000
    assert load.failed == 0, load.answers


async def test_switching_without_waiting_does_cost_requests(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik
) -> None:
    """The control: the test above would notice."""
    engine.answer_seconds = 0.002
    workload = new_id("app")
    ((current, address),) = await instances(engine, 1)
    await proxy.publish(Served(workload, (HOST,), (address,)))
    async with Load(traefik.port, HOST, connections=8) as load:
        for _ in range(3):
            ((following, address),) = await instances(engine, 1)
            switch = asyncio.create_task(proxy.publish(Served(workload, (HOST,), (address,))))
            await engine.remove(current)
            current = following
            await switch
            await load.more(250)
    assert load.failed > 0


async def test_one_that_does_not_answer_is_passed_over(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik
) -> None:
    ((name, alive),) = await instances(engine, 1)
    ((gone, dead),) = await instances(engine, 1)
    await engine.remove(gone)
    await proxy.publish(Served(new_id("app"), (HOST,), (alive, dead)))
    answers = [await get(traefik.port, HOST) for _ in range(20)]
    assert {(status, body.split()[0]) for status, body in answers} == {(200, name)}


async def test_a_workload_without_instances_is_known_and_says_so(proxy: Proxy, traefik: Traefik) -> None:
    await proxy.publish(Served(new_id("app"), (HOST,), ()))
    assert (await get(traefik.port, HOST))[0] == 503


async def test_what_is_withdrawn_is_unknown_and_the_others_stay(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik
) -> None:
    running = await instances(engine, 2)
    one, other = new_id("app"), new_id("app")
    await proxy.publish(Served(one, (HOST,), (running[0][1],)))
    await proxy.publish(Served(other, ("apple.example.com",), (running[1][1],)))
    await proxy.withdraw(one)
    await proxy.withdraw(one)
    assert (await get(traefik.port, HOST))[0] == 404
    assert (await get(traefik.port, "apple.example.com"))[0] == 200


async def test_many_at_the_same_time(proxy: Proxy, engine: FakeEngine, traefik: Traefik) -> None:
    ((name, address),) = await instances(engine, 1)
    hosts = [f"{letter}{number}.example.com" for letter in "abcde" for number in range(12)]
    await asyncio.gather(*(proxy.publish(Served(new_id("app"), (host,), (address,))) for host in hosts))
    answers = await asyncio.gather(*(get(traefik.port, host) for host in hosts))
    assert {body.split()[0] for _, body in answers} == {name}


async def test_nothing_is_shown_to_customers(proxy: Proxy, engine: FakeEngine, traefik: Traefik) -> None:
    ((_, address),) = await instances(engine, 1)
    workload = new_id("app")
    await proxy.publish(Served(workload, (HOST,), (address,)))
    for host, path in (
        (HOST, "/"),
        (HOST, f"/{workload}"),
        ("127.0.0.1", f"/{workload}"),
        ("x.invalid", "/"),
    ):
        assert HEADER.lower() not in (await head(traefik.port, host, path)).lower()
    secret = (traefik.routes.parent / "confirm").read_text()
    assert HEADER.lower() in (await head(traefik.port, secret, f"/{workload}")).lower()
    assert (traefik.routes.parent / "confirm").stat().st_mode & 0o077 == 0


async def test_the_next_agent_takes_over_and_changes_nothing(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik
) -> None:
    ((name, address),) = await instances(engine, 1)
    served = Served(new_id("app"), (HOST,), (address,))
    await proxy.publish(served)
    before = {path.name: path.stat().st_mtime_ns for path in traefik.routes.iterdir()}
    following = proxy_for(traefik)
    await following.open()
    assert (await get(traefik.port, HOST))[1].split()[0] == name
    await following.publish(served)
    assert {path.name: path.stat().st_mtime_ns for path in traefik.routes.iterdir()} == before


async def test_a_file_that_would_stop_all_is_put_aside(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik
) -> None:
    running = await instances(engine, 2)
    await proxy.publish(Served(new_id("app"), (HOST,), (running[0][1],)))
    (traefik.routes / "poison.yaml").write_text("{{ .nonsense")
    blocked = proxy_for(traefik, patience=0.3)
    # The proxy loads nothing any more while it is there …
    with pytest.raises(Unavailable, match="still serves what it served before"):
        await blocked.publish(Served(new_id("app"), ("blocked.example.com",), (running[1][1],)))
    # … and goes on with what it had.
    assert (await get(traefik.port, HOST))[0] == 200
    following = proxy_for(traefik)
    await following.open()
    assert not (traefik.routes / "poison.yaml").exists()
    await following.publish(Served(new_id("app"), ("after.example.com",), (running[1][1],)))
    assert (await get(traefik.port, "after.example.com"))[0] == 200


async def test_a_proxy_that_is_away_is_unavailable(tmp_path: Path) -> None:
    away = TraefikProxy(tmp_path / "routes", f"http://127.0.0.1:{free_port()}", SystemClock(), patience=0.2)
    await away.open()
    with pytest.raises(Unavailable, match="does not answer"):
        await away.publish(Served(new_id("app"), (HOST,), ()))
    # The file is there for the moment it comes back.
    assert len(list((tmp_path / "routes").iterdir())) == 2


async def test_a_change_that_was_missed_is_shown_again(
    proxy: Proxy, engine: FakeEngine, traefik: Traefik, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.ingress._REMIND", 0.2)
    ((name, address),) = await instances(engine, 1)
    # A file that cannot be read for a moment, and nobody is told when it can be again.
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text("{{ .nonsense")
    (traefik.routes / "transient.yaml").symlink_to(elsewhere)
    publishing = asyncio.create_task(proxy.publish(Served(new_id("app"), (HOST,), (address,))))
    await asyncio.sleep(0.15)
    elsewhere.write_text("{}")
    await publishing
    assert (await get(traefik.port, HOST))[1].split()[0] == name
