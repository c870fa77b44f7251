"""What the operator starts from: the files that are generated, and those that lie in the repository."""

import re
import stat
import subprocess
from pathlib import Path

import pytest
from contracts.errors import InvalidInput
from embedded import compose, wheels
from embedded.images import RECIPES
from embedded.traefik import MeshPorts, Traefik
from runtime.permissions import SERVICES, node_name
from runtime.secrets import BadSecret, derive

from tests.compose.stack import client_of_compose

COMPOSE = (compose.FOLDER / "compose.yaml").read_text()


def test_secrets_are_made_once_and_shown_to_nobody_else(tmp_path: Path) -> None:
    first = compose.write(tmp_path, {})
    before = (tmp_path / ".env").read_text()
    assert compose.write(tmp_path, {}) == first
    assert (tmp_path / ".env").read_text() == before
    for name in (".env", "settings.env"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert compose.write(tmp_path / "another", {})["BERTH_SECRET"] != first["BERTH_SECRET"]
    for service in SERVICES:
        assert first[f"BERTH_DATABASE_PASSWORD_{service.upper()}"] == derive(
            first["BERTH_SECRET"], f"database/{service}"
        )


def test_what_the_operator_wrote_stays(tmp_path: Path) -> None:
    compose.write(tmp_path, {})
    env, settings = tmp_path / ".env", tmp_path / "settings.env"
    changed = env.read_text().replace(
        "GATEWAY_ADMIN_EMAIL=admin@berth.localhost", "GATEWAY_ADMIN_EMAIL=me@x.org"
    )
    env.write_text(changed + "# my port\nBERTH_API_PORT=9000\n")
    settings.write_text("GATEWAY_REGISTRATION=false\n")
    known = compose.write(tmp_path, {"BERTH_NODE": "n1"}, {"BERTH_API_PORT": "8000"})
    assert known["BERTH_API_PORT"] == "9000"
    assert known["GATEWAY_ADMIN_EMAIL"] == "me@x.org"
    assert known["BERTH_NATS_PASSWORD_NODE"] == derive(known["BERTH_SECRET"], f"nats/{node_name('n1')}")
    assert "# my port\nBERTH_API_PORT=9000\n" in env.read_text()
    assert settings.read_text() == "GATEWAY_REGISTRATION=false\n"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("BERTH_SECRET=", BadSecret),
        ("BERTH_SECRET=changeme", BadSecret),
        ("BERTH_NODE=My Node", InvalidInput),
    ],
)
def test_a_bad_value_is_refused_and_nothing_is_written(
    tmp_path: Path, line: str, error: type[Exception]
) -> None:
    (tmp_path / ".env").write_text(line + "\n")
    with pytest.raises(error):
        compose.write(tmp_path, {})
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(".env", line + "\n")]


def test_nats_takes_its_configuration_and_it_holds_no_password(tmp_path: Path) -> None:
    known = compose.write(tmp_path, {"BERTH_NODE": "n1"})
    text = (tmp_path / "nats.conf").read_text()
    passwords = {name: value for name, value in known.items() if name.startswith("BERTH_NATS_PASSWORD_")}
    assert len(passwords) == len(SERVICES) + 2
    assert not [name for name, value in passwords.items() if value in text]
    # As compose.yaml hands them over, and with one that begins like a number.
    told = {name.removeprefix("BERTH_"): f'"{value}"' for name, value in passwords.items()}
    told["NATS_PASSWORD_NODE"] = '"1e5-looks-like-a-number"'
    checked = subprocess.run(
        [wheels.nats_server(), "-t", "--config", str(tmp_path / "nats.conf")],
        env=told,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "is valid" in checked.stdout + checked.stderr, checked.stderr
    assert "sync_interval: always" in text


def test_compose_takes_the_file_and_says_what_is_missing(tmp_path: Path) -> None:
    client = client_of_compose(tmp_path)
    compose.write(tmp_path, {})
    argv = [*client, "-f", str(compose.FOLDER / "compose.yaml")]
    good = subprocess.run(
        [*argv, "--env-file", str(tmp_path / ".env"), "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert good.returncode == 0, good.stderr
    (tmp_path / "empty.env").write_text("")
    bad = subprocess.run(
        [*argv, "--env-file", str(tmp_path / "empty.env"), "config", "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert bad.returncode != 0
    assert "berth compose-env" in bad.stderr


def test_no_secret_has_a_default(tmp_path: Path) -> None:
    for name, rest in re.findall(r"\$\{(\w+)([^}]*)\}", COMPOSE):
        if "PASSWORD" in name or "SECRET" in name:
            assert rest.startswith(":?"), name
    assert set(re.findall(r"\$\{(\w+):\?", COMPOSE)) <= compose.write(tmp_path, {}).keys()


def test_the_ingress_is_told_what_the_embedded_one_is(tmp_path: Path) -> None:
    """Two ways to start one Traefik: a rule of safety in the one is in the other too."""
    flat: dict[str, str] = {}

    def walk(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(below, f"{path}.{key}" if path else key)
        elif isinstance(value, list):
            flat[path] = ",".join(map(str, value))
        else:
            flat[path] = str(value).lower() if isinstance(value, bool) else str(value)

    walk(Traefik(tmp_path, 80, 8082, mesh=MeshPorts("127.0.0.1", 7443, 7480))._config, "")
    ingress = COMPOSE.partition("\n  ingress:\n")[2]
    flags = dict(re.findall(r"^      - --([\w.]+)=(.*)$", ingress, re.M))
    told = {
        "providers.file.directory",
        *(f"entryPoints.{at}.address" for at in ("web", "ping", "mesh", "here")),
    }
    wanted = {name: value for name, value in flat.items() if value not in ("false", "", "0s")}
    missing = {f"--{name}={value}" for name, value in wanted.items() if flags.get(name) != value}
    assert {flag for flag in missing if flag.partition("=")[0][2:] not in told} == set(), (
        "add to compose.yaml"
    )
    assert flags.keys() <= flat.keys()


def test_the_image_is_made_by_the_uv_the_checkout_uses() -> None:
    bootstrap = (compose.ROOT / "deploy" / "embedded" / "bootstrap.py").read_text()
    (version,) = re.findall(r'^UV = "(.+)"$', bootstrap, re.M)
    assert f"uv=={version}" in (RECIPES / "platform" / "Dockerfile").read_text()


def test_the_operators_page_knows_every_variable() -> None:
    page = (compose.ROOT / "docs" / "compose.md").read_text()
    chosen = {
        name: default
        for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", COMPOSE)
        if name not in ("BERTH_COMPOSE_STATE", "BERTH_NODE_HOST", "BUILDER_CA_BUNDLE")
    }
    assert len(chosen) > 10
    for name, default in chosen.items():
        (row,) = [line for line in page.splitlines() if line.startswith("| `") and f"`{name}`" in line]
        assert f"`{default}`" in row, name
