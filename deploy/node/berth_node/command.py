"""`berth-node`: the command of a node's own machine. `node.sh` calls it, and whoever looks after it."""

import argparse
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from contracts.errors import BerthError, Unavailable

from berth_node import joining, services, supervisor
from berth_node.layout import Layout, write

_READY = "http://127.0.0.1:8001/readyz"
_PATIENCE = 90.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("berth-node", description="This machine as a node of the platform.")
    commands = parser.add_subparsers(dest="command", required=True)
    join = commands.add_parser("join", help="join the platform, and start")
    join.add_argument("--url", required=True, help="where the platform's API is")
    join.add_argument("--name", help="name of this node")
    for name, words in (
        ("start", "start the node's services"),
        ("stop", "stop them; apps go on running"),
        ("status", "whether the agent is ready"),
        ("remove", "take the platform off this machine, apps included"),
    ):
        commands.add_parser(name, help=words)
    supervise = commands.add_parser("supervise", help="keep a part running, where there is no systemd")
    supervise.add_argument("part", choices=("engine", "services"))
    chosen = parser.parse_args(arguments)
    layout = Layout()
    try:
        if chosen.command == "join":
            return _join(layout, chosen.url, chosen.name)
        if chosen.command == "supervise":
            return supervisor.supervise(layout, chosen.part)
        return {"start": start, "stop": stop, "status": status, "remove": remove}[chosen.command](layout)
    except BerthError as error:
        sys.stderr.write(f"berth: {error.message}\n")
        return 1
    except (OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"berth: {error}\n")
        return 1


def _join(layout: Layout, url: str, name: str | None) -> int:
    node = joining.join(layout, url, os.environ.pop("BERTH_JOIN_TOKEN", ""), name)
    say(f"joined as {node}")
    start(layout)
    _wait_ready()
    say(f"{node} is ready")
    return 0


def start(layout: Layout) -> int:
    layout.routes.mkdir(mode=0o700, parents=True, exist_ok=True)
    changed = write(layout.ingress_yaml, services.ingress(layout))
    if not _systemd():
        supervisor.begin(layout, "engine")
        if not _current(layout) or changed:
            supervisor.end(layout, "services")
        supervisor.begin(layout, "services")
        return 0
    for run in services.runs(layout):
        write(layout.units / f"{run.name}.service", run.unit())
    _checked("systemctl", "daemon-reload")
    for run in services.runs(layout):
        _checked("systemctl", "enable", "--quiet", run.name)
        _checked("systemctl", "restart", run.name)
    return 0


def _current(layout: Layout) -> bool:
    """Whether what runs was started from the release that is installed now."""
    return not write(layout.run / "release", f"{layout.program.resolve()}\n")


def stop(layout: Layout) -> int:
    if _systemd():
        for run in services.runs(layout):
            _checked("systemctl", "stop", run.name)
    else:
        supervisor.end(layout, "services")
    return 0


def status(layout: Layout) -> int:
    ready, words = _readiness()
    say(f"{joining.read(layout.agent_env)['BERTH_NODE']}: {words}")
    return 0 if ready else 1


def remove(layout: Layout) -> int:
    """Everything but the container engine, whose settings are the script's."""
    prefix = "berth"
    if layout.agent_env.exists():
        prefix = joining.read(layout.agent_env).get("NODE_AGENT_PREFIX", prefix)
        _end_services(layout)
        _end_instances(prefix)
        _remove_rules(prefix)
        if not _systemd():
            supervisor.end(layout, "engine")
    _unmount_below(layout.state)
    for folder in (layout.settings, layout.state, layout.run):
        shutil.rmtree(folder, ignore_errors=True)
    say("the node's services, apps, volumes and settings are gone")
    return 0


def _end_services(layout: Layout) -> None:
    if not _systemd():
        supervisor.end(layout, "services")
        return
    for name in ("berth-agent", "berth-ingress"):
        _checked("systemctl", "disable", "--now", "--quiet", name)
        (layout.units / f"{name}.service").unlink(missing_ok=True)
    _checked("systemctl", "daemon-reload")


def _end_instances(prefix: str) -> None:
    from docker import APIClient
    from docker.errors import DockerException

    try:
        client: Any = APIClient(base_url="unix:///var/run/docker.sock", version="auto", timeout=60)
    except DockerException as error:
        raise Unavailable(
            f"the container engine does not answer, so apps cannot be ended: {error}"
        ) from error
    try:
        of_ours = {"label": f"berth.prefix={prefix}"}
        for container in client.containers(all=True, filters=of_ours):
            client.remove_container(container["Id"], force=True, v=True)
        for network in client.networks(filters=of_ours):
            client.remove_network(network["Id"])
    finally:
        client.close()


def _remove_rules(prefix: str) -> None:
    """The chains of the agent, and the rules that lead into them."""
    ours = f"{prefix.upper()}-"
    for table in ("filter", "nat"):
        _remove_chains("iptables", table, ours)
    # Where there is none, the agent made no rules with it.
    if shutil.which("ip6tables") is not None and Path("/proc/net/if_inet6").exists():
        _remove_chains("ip6tables", "filter", ours)


def _remove_chains(program: str, table: str, ours: str) -> None:
    argv = [f"{program}-save", "-t", table]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0 and program == "ip6tables":
        # Nor did the agent, where it cannot be used.
        return
    done.check_returncode()
    saved = done.stdout.splitlines()
    chains = [line[1:].split()[0] for line in saved if line.startswith(f":{ours}")]
    for line in saved:
        if line.startswith("-A ") and f"-j {ours}" in line and not line.startswith(f"-A {ours}"):
            _checked(program, "-w", "10", "-t", table, "-D", *line.split()[1:])
    for step in ("-F", "-X"):
        for chain in chains:
            _checked(program, "-w", "10", "-t", table, step, chain)


def _unmount_below(folder: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for place in sorted((m for m in mounts if m.startswith(f"{folder}/")), reverse=True):
        _checked("umount", place)


def _systemd() -> bool:
    return Path("/run/systemd/system").exists()


def _readiness() -> tuple[bool, str]:
    try:
        with urllib.request.urlopen(_READY, timeout=3) as response:
            return True, response.read(500).decode(errors="replace").strip()
    except urllib.error.HTTPError as error:
        with error:
            return False, error.read(500).decode(errors="replace")
    except OSError as error:
        return False, f"the agent does not answer ({error})"


def _wait_ready() -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        ready, words = _readiness()
        if ready:
            return
        if time.monotonic() > deadline:
            raise Unavailable(f"the agent is not ready after {_PATIENCE:g} s: {words}")
        time.sleep(0.25)


def _checked(*argv: str) -> None:
    with suppress(FileNotFoundError):
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        raise Unavailable(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
    raise Unavailable(f"{argv[0]} is missing")


def say(line: str) -> None:
    sys.stdout.write(f"berth: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
