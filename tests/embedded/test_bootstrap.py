import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "deploy" / "embedded" / "bootstrap.py"


@pytest.fixture
def bootstrap(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INSECURE_HOST", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("bootstrap", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_pip_was_told_is_told_to_uv(bootstrap: ModuleType) -> None:
    env = bootstrap.uv_environment(
        {"index-url": "https://mirror.example/simple", "cert": "/ca.pem", "trusted-host": "mirror.example"}
    )
    assert env["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert env["SSL_CERT_FILE"] == "/ca.pem"
    assert env["UV_INSECURE_HOST"] == "mirror.example"
    assert env["UV_PYTHON_DOWNLOADS"] == "never"


def test_without_a_mirror_the_lock_file_is_followed(bootstrap: ModuleType) -> None:
    assert "UV_DEFAULT_INDEX" not in bootstrap.uv_environment({})


def test_what_uv_was_told_itself_counts_more(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://chosen.example/simple")
    monkeypatch.setenv("SSL_CERT_FILE", "/chosen.pem")
    env = bootstrap.uv_environment({"index-url": "https://mirror.example/simple", "cert": "/ca.pem"})
    assert env["UV_DEFAULT_INDEX"] == "https://chosen.example/simple"
    assert env["SSL_CERT_FILE"] == "/chosen.pem"


def test_a_changed_lock_file_is_noticed(
    bootstrap: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    (tmp_path / "uv.lock").write_text("one")
    first = bootstrap.wanted()
    assert first == bootstrap.wanted()
    (tmp_path / "uv.lock").write_text("two")
    assert first != bootstrap.wanted()
