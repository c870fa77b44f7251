import io
import os
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from contracts.errors import Unavailable
from embedded import first_app, installation, up
from embedded.installation import Installation, build_ca_bundle
from embedded.settings import EmbeddedSettings
from embedded.web import Api, Refused
from runtime.settings import RuntimeSettings

from tests.harness import free_port


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("BERTH_", "GATEWAY_", "BUILDER_", "NODE_AGENT_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BERTH_STATE", str(tmp_path / "state"))


def here() -> Installation:
    return Installation(lambda line: None, EmbeddedSettings(), RuntimeSettings())


def test_secrets_are_made_once_and_closed(tmp_path: Path) -> None:
    first, second = here(), here()
    first.prepare()
    assert first.secret == second.secret
    assert first.administrator == second.administrator
    assert len(first.administrator.password) >= 20
    for name in ("secret", "administrator.json"):
        assert (tmp_path / "state" / name).stat().st_mode & 0o077 == 0


def test_services_are_told_where_everything_is_and_not_how_to_change_schemas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BILLING_GRACE", "3")
    monkeypatch.setenv("UNRELATED", "kept to ourselves")
    installed = here()
    installed.prepare()
    told = installed.environment()
    assert told["BERTH_DATABASE_URL"] == "postgresql://127.0.0.1:15432/berth"
    assert told["BERTH_NATS_URL"] == "nats://127.0.0.1:14222"
    assert told["BERTH_SECRET_FILE"] == str(installed.state / "secret")
    assert told["BILLING_GRACE"] == "3"
    assert "UNRELATED" not in told
    assert "BERTH_DATABASE_ADMIN_URL" not in told
    assert installed.operator_environment()["BERTH_DATABASE_ADMIN_URL"].startswith("postgresql://postgres:")


def test_servers_that_are_named_are_used_instead_of_own_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTH_DATABASE_URL", "postgresql://db.example/berth")
    monkeypatch.setenv("BERTH_DATABASE_ADMIN_URL", "postgresql://boss@db.example/berth")
    monkeypatch.setenv("BERTH_NATS_URL", "nats://bus.example:4222")
    installed = here()
    installed.prepare()
    assert not installed.own_database
    assert not installed.own_bus
    assert installed.environment()["BERTH_DATABASE_URL"] == "postgresql://db.example/berth"
    assert installed.environment()["BERTH_NATS_URL"] == "nats://bus.example:4222"
    assert "BERTH_DATABASE_ADMIN_URL" not in installed.environment()
    assert (
        installed.operator_environment()["BERTH_DATABASE_ADMIN_URL"] == "postgresql://boss@db.example/berth"
    )


def test_ports_stay_as_they_were_until_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BERTH_HTTP_PORT", "9090")
    installed = here()
    installed.prepare()
    installed.ports.keep(installed.state / "ports.json")
    monkeypatch.delenv("BERTH_HTTP_PORT")
    assert here().ports.http == 9090
    monkeypatch.setenv("BERTH_HTTP_PORT", "9191")
    assert here().ports.http == 9191


def test_two_commands_at_once_are_told_apart() -> None:
    installed = here()
    installed.prepare()
    with installed.alone(), pytest.raises(Unavailable, match="another `berth up`"), here().alone():
        raise AssertionError("both are at work")
    with here().alone():
        assert installed.state.exists()


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "LEAST_FREE_MB", 10**9)
    with pytest.raises(Unavailable, match=r"MB free and needs 1000000000: make room, or .* BERTH_STATE"):
        here().prepare()


def test_a_folder_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BERTH_STATE", "/proc/berth")
    assert up.up([]) == 1
    said = capsys.readouterr().err
    assert said.startswith("berth: /proc/berth cannot be written (")
    assert said.count("\n") == 1


def test_commands_that_need_a_start_say_so(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (up.down, up.status, up.logs, up.with_settings):
        assert command([]) == 1
        assert "run `berth up`" in capsys.readouterr().err


def test_logs_shows_the_last_lines(capsys: pytest.CaptureFixture[str]) -> None:
    installed = here()
    installed.prepare()
    installed.ports.keep(installed.state / "ports.json")
    installed.platform.log_file.write_text("one\ntwo\nthree\n")
    assert up.logs(["--lines", "2"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert up.logs(["nats"]) == 1
    assert "nats has not said anything yet" in capsys.readouterr().err


def test_builds_get_the_certificates_this_machine_was_told_to_trust(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    assert build_ca_bundle({}) is None
    assert build_ca_bundle({"SSL_CERT_FILE": str(bundle)}) == bundle
    assert build_ca_bundle({"SSL_CERT_FILE": "/nowhere", "PIP_CERT": str(bundle)}) == bundle


def test_the_example_is_packed_as_its_source_is() -> None:
    with tarfile.open(fileobj=io.BytesIO(first_app.pack(first_app.SOURCE))) as archive:
        assert archive.getnames() == ["Procfile", "app.py", "requirements.txt"]


@pytest.fixture
def refusing_api() -> Iterator[int]:
    class Refusal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b'{"error": {"code": "unauthenticated", "message": "wrong password"}}')

        def log_message(self, *arguments: object) -> None:
            """The test's output is not its access log."""

    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_refusal_of_the_api_is_passed_on_in_its_words(refusing_api: int) -> None:
    with pytest.raises(Refused, match="POST /api/auth/login answered 401: wrong password"):
        Api(f"http://127.0.0.1:{refusing_api}").log_in("admin@berth.localhost", "x")


def test_an_app_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(Unavailable, match=r"http://hello.localhost:1 does not answer \(.*refused"):
        first_app.wait_for("http://hello.localhost:1", f"http://127.0.0.1:{free_port()}", seconds=0.2)
