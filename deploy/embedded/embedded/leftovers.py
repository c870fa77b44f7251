"""What a stopped engine or node agent leaves in the kernel: mounts, bridges, firewall chains, two switches.

Called once their maker has gone; chains are known by how their names begin, everything else by its own name.
"""

import json
import os
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

ENGINE_CHAINS = ("DOCKER",)
_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True)
class Before:
    """What the engine changes about the machine when it starts, as it was before."""

    ip_forward: str
    forward_policy: str

    @classmethod
    def look(cls) -> Self:
        return cls(_FORWARDING.read_text().strip(), forward_policy(_saved_rules("iptables")))

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, file: Path) -> Self:
        return cls(**json.loads(file.read_text()))

    def restore(self) -> None:
        if forward_policy(_saved_rules("iptables")) != self.forward_policy:
            _run("iptables", "--wait", "--policy", "FORWARD", self.forward_policy)
        if _FORWARDING.read_text().strip() != self.ip_forward:
            _FORWARDING.write_text(self.ip_forward)


def forward_policy(saved: str) -> str:
    """PURE. The policy of FORWARD in the text of iptables-save."""
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif table == "filter" and line.startswith(":FORWARD "):
            return line.split()[1]
    return "ACCEPT"


def removals(saved: str, chains: tuple[str, ...], bridges: Iterable[str] = ()) -> list[list[str]]:
    """PURE. What to tell iptables so that no chain whose name begins so is left, and no rule that needs one.

    A rule goes when it stands in or jumps to such a chain, or names one of the bridges.
    """
    links = frozenset(bridges)
    table = ""
    rules: list[list[str]] = []
    emptied: list[list[str]] = []
    removed: list[list[str]] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.startswith(":") and line[1:].startswith(chains):
            chain = line[1:].split()[0]
            emptied.append(["--table", table, "--flush", chain])
            removed.append(["--table", table, "--delete-chain", chain])
        elif line.startswith("-A ") and not line.removeprefix("-A ").startswith(chains):
            words = shlex.split(line)
            pairs = set(pairwise(words))
            jumps = any(flag in ("-j", "-g") and target.startswith(chains) for flag, target in pairs)
            if jumps or any(flag in ("-i", "-o") and link in links for flag, link in pairs):
                rules.append(["--table", table, "--delete", *words[1:]])
    return [*rules, *emptied, *removed]


def remove_firewall(chains: tuple[str, ...], bridges: Iterable[str] = ()) -> None:
    links = list(bridges)
    for program in ("iptables", "ip6tables"):
        for words in removals(_saved_rules(program), chains, links):
            _run(program, "--wait", *words)


def remove_bridges(bridges: Iterable[str]) -> None:
    for link in bridges:
        _run("ip", "link", "delete", link)


def unmount_below(*folders: Path) -> None:
    """Deepest first; a mount that is busy goes as soon as its last user does."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted(points, reverse=True):
        path = Path(point.encode().decode("unicode_escape"))
        if any(path == folder or folder in path.parents for folder in folders):
            _run("umount", "--lazy", str(path))


def engines_beside(own: int | None) -> bool:
    """Whether another engine works in this network namespace: then its chains are also the other's."""
    ours = os.readlink("/proc/self/ns/net")
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) == own or (folder / "comm").read_text().strip() != "dockerd":
                continue
            if os.readlink(folder / "ns" / "net") == ours:
                return True
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return False


def _saved_rules(program: str) -> str:
    try:
        return subprocess.run([f"{program}-save"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""


def _run(*argv: str) -> None:
    """Best effort on purpose: what is gone already is as good as removed."""
    subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
