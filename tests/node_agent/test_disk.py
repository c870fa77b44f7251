"""How much is below a folder that its owner changes as he likes."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from node_agent.docker_disk import held, written

PLENTY = 2**30
MIB = 2**20


def fill(file: Path, size: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x" * size)
    return file


def test_blocks_count_and_so_does_what_is_empty(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "b" / "big", MIB)
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(PLENTY)
    assert MIB + 3 * 4096 <= held(str(tmp_path), PLENTY) <= MIB + 5 * 4096


def test_a_file_of_many_names_counts_once(tmp_path: Path) -> None:
    big = fill(tmp_path / "big", MIB)
    for number in range(9):
        os.link(big, tmp_path / f"link{number}")
    assert MIB - 10 <= held(str(tmp_path), PLENTY) <= MIB + 4096


def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    fill(tmp_path / "outside" / "big", MIB)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "outside")
    assert held(str(inside), PLENTY) == 4096


def test_a_folder_that_becomes_a_link_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "outside" / "big", MIB)
    swapped = tmp_path / "inside" / "swapped"
    swapped.mkdir(parents=True)
    opened = os.open

    def swap(path: str, *arguments: Any, **more: Any) -> int:
        if path == "swapped":
            swapped.rmdir()
            swapped.symlink_to(tmp_path / "outside")
        return opened(path, *arguments, **more)

    monkeypatch.setattr(os, "open", swap)
    assert held(str(tmp_path / "inside"), PLENTY) == 4096
    assert swapped.is_symlink()


def test_it_looks_no_further_than_it_has_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        (tmp_path / str(number)).touch()
    assert held(str(tmp_path), 9 * 4096) == 10 * 4096


def test_what_the_engine_cannot_measure_is_too_much() -> None:
    """It says -1, and of an engine elsewhere there is nothing else to be had."""
    elsewhere = {"Id": "c", "Mounts": [], "GraphDriver": {"Data": {"UpperDir": "/nowhere/to/be/seen"}}}
    for said, counted in ((-1, PLENTY + 1), (5, 5)):
        client = SimpleNamespace(
            containers=lambda said=said, **_: [{"Id": "c", "SizeRw": said}],
            inspect_container=lambda _: elsewhere,
        )
        assert written(client, "c", PLENTY) == counted


@pytest.mark.parametrize("driver", [{}, {"GraphDriver": None}, {"GraphDriver": {"Name": "overlayfs"}}])
def test_an_engine_that_names_no_driver_is_asked(driver: dict[str, Any]) -> None:
    """Docker 29 with images in containerd, which is what it comes with."""
    client = SimpleNamespace(
        containers=lambda **_: [{"Id": "c", "SizeRw": 5}],
        inspect_container=lambda _: {"Id": "c", "Mounts": [], **driver},
    )
    assert written(client, "c", PLENTY) == 5
