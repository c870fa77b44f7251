"""`berth`: the operator's command. `run` is the platform itself; other packages add their own commands
through the entry point group `berth.commands` (a function from arguments to an exit status)."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from importlib import metadata

from contracts.errors import Unavailable
from pydantic import ValidationError

from runtime.secrets import BadSecret, new_secret
from runtime.settings import RuntimeSettings


def _run(arguments: list[str]) -> int:
    from runtime.run import entry_points, run

    known = sorted(entry_points())
    parser = argparse.ArgumentParser(
        "berth run", description="Run services in this process; none named: all."
    )
    parser.add_argument("service", nargs="*", choices=[*known, []], help=", ".join(known))
    run(parser.parse_args(arguments).service or known)
    return 0


def _migrate(arguments: list[str]) -> int:
    from runtime.migrations import migrate
    from runtime.run import STATELESS, entry_points

    argparse.ArgumentParser("berth migrate", description="Bring every schema up to date.").parse_args(
        arguments
    )
    settings = RuntimeSettings()
    if settings.database_admin_url is None:
        print(
            "berth migrate: set BERTH_DATABASE_ADMIN_URL to a role that may create schemas", file=sys.stderr
        )
        return 2
    services = [
        (name, entry.value.partition(".")[0], settings.database_password_of(name))
        for name, entry in sorted(entry_points().items())
        if name not in STATELESS
    ]
    migrate(settings.database_admin_url.get_secret_value(), services)
    return 0


def _parked(arguments: list[str]) -> int:
    from runtime import parked
    from runtime.run import STATELESS, entry_points

    parser = argparse.ArgumentParser(
        "berth parked", description="Messages that could not be handled: look at them, replay or drop them."
    )
    parser.add_argument("service", choices=sorted(set(entry_points()) - set(STATELESS)))
    parser.add_argument("action", nargs="?", default="list", choices=("list", "show", "replay", "drop"))
    parser.add_argument("event", nargs="?", help="the id of one message; none for `replay`: all of them")
    chosen = parser.parse_args(arguments)
    if chosen.action in ("show", "drop") and chosen.event is None:
        parser.error(f"{chosen.action} needs the id of a message")
    return asyncio.run(parked.command(RuntimeSettings(), chosen.service, chosen.action, chosen.event))


def _secret(arguments: list[str]) -> int:
    argparse.ArgumentParser("berth secret", description="Print a new master secret.").parse_args(arguments)
    print(new_secret())
    return 0


def _nats_users(arguments: list[str]) -> int:
    from runtime.issuer import Issuer, cutter_password
    from runtime.permissions import CUTTER, nats_config

    parser = argparse.ArgumentParser(
        "berth nats-users",
        description="Print what a nats-server of your own is told of users; it holds their passwords.",
    )
    parser.add_argument("--node", action="append", default=[], help="a node that does not join with a token")
    chosen = parser.parse_args(arguments)
    settings = RuntimeSettings()
    issuer = settings.nats_issuer_key

    def password(user: str) -> str:
        return cutter_password(issuer) if user == CUTTER else settings.derived(f"nats/{user}")

    print(nats_config(password, nodes=chosen.node, issuer=Issuer(issuer).public), end="")
    return 0


def _settings(arguments: list[str]) -> int:
    from runtime.reference import reference

    argparse.ArgumentParser("berth settings", description="Print every setting there is.").parse_args(
        arguments
    )
    print(reference(), end="")
    return 0


COMMANDS = {
    "run": _run,
    "migrate": _migrate,
    "parked": _parked,
    "secret": _secret,
    "settings": _settings,
    "nats-users": _nats_users,
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    more = {entry.name: entry for entry in metadata.entry_points(group="berth.commands")}
    names = sorted([*COMMANDS, *more])
    if not words or words[0] in ("-h", "--help", "help"):
        print("berth COMMAND [ARGUMENT …]\n\n  " + "\n  ".join(names))
        return 0
    command = COMMANDS.get(words[0]) or (more[words[0]].load() if words[0] in more else None)
    if command is None:
        print(f"berth: there is no command {words[0]}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    try:
        return int(command(words[1:]))
    except (BadSecret, Unavailable) as error:
        print(f"berth: {error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            print(f"berth: setting {name}: {problem['msg']}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
