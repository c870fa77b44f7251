"""What a joining machine is given: the same bytes from every replica, and nothing that is not pinned."""

import hashlib
import io
import re
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from berth_node import joining, lock, services
from berth_node.layout import Layout
from contracts.errors import Unavailable
from gateway.bundle import PACKAGES, bundle

HERE = Path(lock.__file__).parent


def test_the_requirements_are_those_of_the_lock_file() -> None:
    wanted = lock.requirements(tomllib.loads((lock.ROOT / "uv.lock").read_text()))
    assert (HERE / "requirements.txt").read_text() == wanted, "run `make gen`"
    assert all(
        line.startswith("    --hash=sha256:") or re.match(r"^[a-z0-9-]+==\S+ \\$", line)
        for line in wanted.splitlines()
    )


def test_every_replica_gives_the_same_bytes_and_the_script_names_them() -> None:
    first = bundle()
    bundle.cache_clear()
    assert bundle().content == first.content
    text = first.script_for("https://paas.example.com")
    assert f"BUNDLE_SHA256='{hashlib.sha256(first.content).hexdigest()}'" in text
    assert "URL='https://paas.example.com'" in text
    assert "@" not in re.sub(r"\$@|\[@\]", "", text)
    with tarfile.open(fileobj=io.BytesIO(first.content)) as tar:
        names = tar.getnames()
        assert len(names) == len(PACKAGES) + 1
        for name in names:
            if name.endswith(".whl"):
                wheel = zipfile.ZipFile(io.BytesIO(tar.extractfile(name).read()))  # type: ignore[union-attr]
                assert wheel.testzip() is None
                assert any(path.endswith("RECORD") for path in wheel.namelist())


def test_the_script_is_one_that_bash_understands() -> None:
    text = bundle().script_for("https://paas.example.com")
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_key_is_kept_before_the_token_is_used(tmp_path: Path) -> None:
    layout = Layout(settings=tmp_path / "etc", state=tmp_path / "var")
    with pytest.raises(joining.Refused, match="BERTH_JOIN_TOKEN"):
        joining.join(layout, "http://127.0.0.1:9", "", None)
    with pytest.raises(Unavailable, match="run the script again"):
        joining.join(layout, "http://127.0.0.1:9", "berth_token", None)
    key = layout.key.read_text()
    assert len(key.strip()) >= 40
    assert layout.key.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Unavailable):
        joining.join(layout, "http://127.0.0.1:9", "berth_token", None)
    assert layout.key.read_text() == key
    assert not layout.agent_env.exists()


def test_units_are_whole_and_the_agent_shares_its_mounts(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "traefik").touch()
    ingress, agent = services.runs(Layout(program=tmp_path / "bin"))
    for run in (ingress, agent):
        assert {"[Unit]", "[Service]", "[Install]"} <= set(run.unit().splitlines())
    assert "CapabilityBoundingSet=CAP_NET_BIND_SERVICE" in ingress.unit()
    # Any of these would give it a view of the mounts of its own, and no volume would reach the engine.
    assert not re.search(r"^(Protect|Private|ReadOnly|MountFlags)", agent.unit(), re.MULTILINE)
    assert "\nRequiresMountsFor=/var/lib/berth-node\n" in agent.unit()
    assert services.ingress(Layout()).startswith("{")
