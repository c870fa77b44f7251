"""What the command of a node does to the machine, as far as that can be seen without one."""

from pathlib import Path

import pytest
from berth_node import command

SAVED = "*filter\n:BERTH-INPUT - [0:0]\n-A INPUT -i berth+ -j BERTH-INPUT\nCOMMIT\n"


def program(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_a_machine_whose_kernel_has_no_ip6tables_is_left_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    program(tmp_path, "iptables-save", f"printf '{SAVED}'".replace("\n", "\\n"))
    program(tmp_path, "iptables", f'echo "$@" >> {done}')
    program(tmp_path, "ip6tables", "exit 3")
    program(tmp_path, "ip6tables-save", "exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    command._remove_rules("berth")
    assert "-w 10 -t filter -D INPUT -i berth+ -j BERTH-INPUT" in done.read_text().splitlines()
