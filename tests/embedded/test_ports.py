import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from contracts.errors import Unavailable
from embedded.ports import Ports, free, listener, settle

VARIABLES = {"http": "BERTH_HTTP_PORT", "api": "BERTH_API_PORT"}


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        yield int(stranger.getsockname()[1])


@pytest.fixture
def wanted() -> Ports:
    # Eight neighbours in a row that nobody uses.
    names = ("http", "api", "ops", "postgres", "nats", "ping", "mesh", "here")
    for start in range(31000, 32000, 8):
        if all(free("127.0.0.1", port) for port in range(start, start + 8)):
            break
    return Ports(**{name: start + number for number, name in enumerate(names)})


def nobody(_: str) -> bool:
    return False


def test_free_ports_are_taken_as_they_are_wanted(wanted: Ports, tmp_path: Path) -> None:
    settled = settle(wanted, nobody, VARIABLES, "127.0.0.1")
    assert settled == wanted
    settled.keep(tmp_path / "ports.json")
    assert Ports.kept(tmp_path / "ports.json") == wanted


def test_a_strangers_port_is_refused_with_his_name_and_the_way_out(wanted: Ports, taken: int) -> None:
    comm = Path("/proc/self/comm").read_text().strip()
    with pytest.raises(Unavailable) as refusal:
        settle(wanted.model_copy(update={"api": taken}), nobody, VARIABLES, "127.0.0.1")
    assert refusal.value.message == (
        f"port {taken} is in use by {comm} (pid {os.getpid()}): "
        "stop that, or choose another port with BERTH_API_PORT"
    )


def test_a_port_nobody_has_to_know_moves_to_a_free_one(wanted: Ports, taken: int) -> None:
    settled = settle(wanted.model_copy(update={"nats": taken}), nobody, VARIABLES, "127.0.0.1")
    assert settled.nats != taken
    assert len(set(settled.model_dump().values())) == 8
    assert settled.model_copy(update={"nats": wanted.nats}) == wanted


def test_our_own_running_server_does_not_stand_in_our_way(wanted: Ports, taken: int) -> None:
    mine = wanted.model_copy(update={"http": taken})
    assert settle(mine, lambda name: name == "http", VARIABLES, "127.0.0.1") == mine


def test_nobody_listens_on_a_free_port(wanted: Ports) -> None:
    assert listener(wanted.http) is None
