"""`berth up`, `down`, `status`, `logs`, `with-settings`: the platform on one machine; `make` calls these."""

import argparse
import functools
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from contracts.errors import BerthError, Unavailable
from runtime.settings import RuntimeSettings

from embedded import first_app
from embedded.daemon import Daemon
from embedded.engine import answers
from embedded.first_app import Deployed
from embedded.images import FURTHER, stacks_of
from embedded.installation import Installation
from embedded.settings import EmbeddedSettings
from embedded.web import Api, Refused

Command = Callable[[list[str]], int]


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _command(work: Callable[[list[str]], int]) -> Command:
    """What goes wrong on a machine is told in one line."""

    @functools.wraps(work)
    def run(arguments: list[str]) -> int:
        try:
            return work(arguments)
        except BerthError as error:
            sys.stderr.write(f"berth: {error.message}\n")
        except OSError as error:
            sys.stderr.write(f"berth: {error}\n")
        except KeyboardInterrupt:
            sys.stderr.write("\n")
        return 1

    return run


def _installation() -> Installation:
    return Installation(say, EmbeddedSettings(), RuntimeSettings())


@_command
def up(arguments: list[str]) -> int:
    argparse.ArgumentParser("berth up", description="Start everything on this machine.").parse_args(arguments)
    here = _installation()
    here.prepare()
    with here.alone():
        here.start()
        url = _example(here) if here.settings.example else None
    say("")
    if url is not None:
        say(f"app     {url}")
    say(f"API     {here.api_url}")
    say(f"docs    {here.api_url}/docs")
    say(f"log in  {here.administrator.email}  {here.administrator.password}")
    return 0


def _example(here: Installation) -> str | None:
    """Deployed once: whoever stops or deletes it later does not get it back."""
    api = Api(here.api_url)
    mark = here.state / "example.json"
    if mark.exists():
        try:
            api.log_in(here.administrator.email, here.administrator.password)
            app = first_app.look(api, Deployed.model_validate_json(mark.read_text()))
        except Refused:
            # Deleted, or the administrator has another password by now.
            return None
        if app.status != "running":
            return None
    else:
        say("deploying the example")
        api.log_in(here.administrator.email, here.administrator.password)
        deployed = first_app.deploy(api)
        mark.write_text(deployed.model_dump_json())
        app = first_app.look(api, deployed)
    if app.url is None:
        return None
    first_app.wait_for(app.url, here.ingress_url)
    return app.url


@_command
def down(arguments: list[str]) -> int:
    argparse.ArgumentParser("berth down", description="Stop everything, keep it all.").parse_args(arguments)
    here = _existing()
    with here.alone():
        here.stop()
    return 0


@_command
def status(arguments: list[str]) -> int:
    argparse.ArgumentParser("berth status", description="What runs here.").parse_args(arguments)
    here = _existing()
    ready, words = here.readiness()
    rows = [
        ("postgres", _state(here.postgres.daemon), here.postgres.port) if here.own_database else None,
        ("nats", _state(here.nats.daemon), here.nats.port) if here.own_bus else None,
        ("traefik", _state(here.traefik.daemon), here.ports.http),
        ("engine", "answers" if answers(here.engine.host) else "does not answer", here.engine.host),
        ("platform", _state(here.platform), here.ports.api),
    ]
    for row in filter(None, rows):
        say(f"{row[0]:<14}{row[1]:<18}{row[2]}")
    for line in words.splitlines():
        service, _, state = line.partition(": ")
        say(f"  {service:<12}{state}")
    return 0 if ready else 1


def _state(daemon: Daemon) -> str:
    pid = daemon.pid()
    return "stopped" if pid is None else f"runs (pid {pid})"


@_command
def images(arguments: list[str]) -> int:
    """Also what `up` runs in the background."""
    names = " ".join(stack.name for stack in FURTHER)
    parser = argparse.ArgumentParser("berth images", description="Make the images of runtimes here.")
    parser.add_argument("name", nargs="*", help=f"which: {names} (all)")
    chosen = stacks_of(" ".join(parser.parse_args(arguments).name) or names)
    here = _installation()
    here.prepare()
    # Ended by `down`: then nothing of the making is left, not even its marks.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with closing(here.images_of(here.engine.ensure(), say)) as making:
        making.ensure_further(chosen)
    return 0


@_command
def logs(arguments: list[str]) -> int:
    here = _existing()
    files = {
        daemon.name: daemon.log_file
        for daemon in (
            here.platform,
            here.images,
            here.postgres.daemon,
            here.nats.daemon,
            here.traefik.daemon,
            here.engine.daemon,
        )
    }
    parser = argparse.ArgumentParser("berth logs", description="The last words of a process.")
    parser.add_argument("name", nargs="?", default=here.platform.name, choices=list(files))
    parser.add_argument("--lines", type=int, default=100, help="how many lines (100)")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until interrupted")
    chosen = parser.parse_args(arguments)
    if not files[chosen.name].exists():
        raise Unavailable(f"{chosen.name} has not said anything yet: no {files[chosen.name]}")
    _tail(files[chosen.name], chosen.lines, chosen.follow)
    return 0


def _tail(path: Path, lines: int, follow: bool) -> None:
    with path.open(errors="replace") as file:
        for line in file.readlines()[-lines:]:
            sys.stdout.write(line)
        while follow:
            sys.stdout.flush()
            time.sleep(0.2)
            sys.stdout.write(file.read())


@_command
def with_settings(arguments: list[str]) -> int:
    """Any other command, told what the platform here was told: `berth with-settings parked billing`."""
    here = _existing()
    return subprocess.call(here.berth(*arguments), env=here.operator_environment())


def _existing() -> Installation:
    here = _installation()
    if not here.exists:
        raise Unavailable(f"nothing was started in {here.state}: run `berth up`, or set BERTH_STATE")
    return here
