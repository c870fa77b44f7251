import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psycopg
import pytest
from contracts.errors import Unavailable
from embedded.nats import Nats
from embedded.postgres import Postgres
from embedded.traefik import Traefik

from tests.harness import free_port

PASSWORD = "a pass/word: with%everything'"


def may_do_anything(user: str) -> str:
    return "authorization: " + json.dumps({"users": [{"user": user, "password": "secret-of-the-test"}]})


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    server = Postgres(tmp_path_factory.mktemp("postgres") / "postgres", free_port(), PASSWORD)
    server.start()
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nats]:
    server = Nats(tmp_path_factory.mktemp("nats") / "nats", free_port(), may_do_anything("first"))
    server.start()
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def traefik(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traefik]:
    server = Traefik(tmp_path_factory.mktemp("traefik") / "traefik", free_port(), free_port())
    server.start()
    server.wait_ready()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    class Echo(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """The test's output is not its access log."""

    with HTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def listening_addresses(port: int) -> set[str]:
    found = set()
    for family in ("tcp", "tcp6"):
        for line in Path("/proc/net", family).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.split(":")[1], 16) == port:
                found.add(address.split(":")[0])
    return found


LOOPBACK = {"0100007F"}


def get(port: int, host: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/", headers={"Host": host, **headers})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_everything_listens_on_loopback_only(postgres: Postgres, bus: Nats, traefik: Traefik) -> None:
    ports = (postgres.port, bus.port, traefik.port, traefik.ping_port)
    assert [listening_addresses(port) for port in ports] == [LOOPBACK] * 4


def test_postgres_never_runs_as_root(postgres: Postgres) -> None:
    assert Path(f"/proc/{postgres.daemon.pid()}").stat().st_uid != 0


def test_postgres_is_adopted_by_a_second_start(postgres: Postgres) -> None:
    pid = postgres.daemon.pid()
    again = Postgres(postgres.folder, postgres.port, PASSWORD)
    again.start()
    again.wait_ready()
    assert again.daemon.pid() == pid


def test_postgres_keeps_what_was_committed_through_a_kill(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url()) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS value")
    # A backend at work outlives its killed server for a while, and the next start has to cope.
    busy = psycopg.connect(postgres.url(), autocommit=True)

    def work() -> None:
        with suppress(psycopg.OperationalError):
            busy.execute("SELECT sum(n) FROM generate_series(1, 4000) n, generate_series(1, 2000) m")

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.1)
    postgres.daemon.stop(signal.SIGKILL)
    postgres.start()
    postgres.wait_ready()
    worker.join()
    busy.close()
    with psycopg.connect(postgres.url()) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (42,)


def test_postgres_takes_a_changed_setting_with_the_next_start(postgres: Postgres) -> None:
    changed = Postgres(postgres.folder, postgres.port, PASSWORD, {"max_connections": "57"})
    changed.start()
    changed.wait_ready()
    with psycopg.connect(changed.url()) as connection:
        assert connection.execute("SHOW max_connections").fetchone() == ("57",)
        assert connection.execute("SHOW fsync").fetchone() == ("on",)


def test_postgres_lets_nobody_in_without_the_password(postgres: Postgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url(password="guess"))
    with pytest.raises(Unavailable, match="refuses the password of this installation"):
        Postgres(postgres.folder, postgres.port, "another").ready()


def test_postgres_begins_again_when_the_first_start_was_cut_off(tmp_path: Path) -> None:
    folder = tmp_path / "postgres"
    (folder / "data.new" / "base").mkdir(parents=True)
    server = Postgres(folder, free_port(), PASSWORD)
    try:
        server.start()
        server.wait_ready()
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.stop()
    assert sorted(os.listdir(folder)) == ["data", "postgres.log"]


def let_in(port: int, user: str) -> bool:
    word = json.dumps({"user": user, "pass": "secret-of-the-test", "verbose": False})
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(f"CONNECT {word}\r\nPING\r\n".encode())
        with suppress(OSError):
            # Who is turned away may be cut off by now.
            connection.shutdown(socket.SHUT_WR)
        try:
            with connection.makefile("r") as lines:
                said = [line.split()[0] for line in iter(lines.readline, "") if not line.startswith("INFO ")]
        except ConnectionError:
            return False
        return said[:1] == ["PONG"]


def test_nats_takes_new_users_without_a_restart(bus: Nats) -> None:
    pid = bus.daemon.pid()
    assert let_in(bus.port, "first")
    changed = Nats(bus.folder, bus.port, may_do_anything("second"))
    changed.start()
    deadline = time.monotonic() + 5
    while not let_in(bus.port, "second"):
        assert time.monotonic() < deadline, "the new user is not let in"
        time.sleep(0.02)
    assert not let_in(bus.port, "first")
    assert bus.daemon.pid() == pid


def test_nats_on_a_taken_port_says_so(bus: Nats, tmp_path: Path) -> None:
    second = Nats(tmp_path / "nats", bus.port, may_do_anything("first"))
    second.start()
    with pytest.raises(Unavailable, match="address already in use"):
        second.daemon.wait_ready(lambda: False, seconds=10)
    second.stop()


def test_traefik_knows_no_host_it_was_not_told(traefik: Traefik) -> None:
    assert get(traefik.port, "stranger.localhost")[0] == 404
    assert get(traefik.port, "traefik.localhost")[0] == 404


def test_traefik_follows_the_routes_folder_and_believes_no_forwarded_header(
    traefik: Traefik, backend: int
) -> None:
    route = {
        "http": {
            "routers": {"hello": {"rule": "Host(`hello.localhost`)", "service": "hello"}},
            "services": {"hello": {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{backend}"}]}}},
        }
    }
    draft = traefik.folder / "hello.new"
    draft.write_text(json.dumps(route))
    draft.replace(traefik.routes / "hello.yaml")
    deadline = time.monotonic() + 5
    while (answer := get(traefik.port, "hello.localhost", **SPOOFED))[0] != 200:
        assert time.monotonic() < deadline, "the route did not appear"
        time.sleep(0.02)
    seen = json.loads(answer[1])
    assert seen["x-forwarded-for"] == "127.0.0.1"
    assert seen["x-forwarded-proto"] == "http"
    assert not {"x_forwarded_for", "x_forwarded_proto"} & seen.keys()


SPOOFED = {
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Proto": "https",
    "X_Forwarded_For": "6.6.6.6",
    "X_Forwarded_Proto": "https",
}
